/* test_dispatch.c - an instruction set is refused where any one bit of cpuid that it needs is masked.
 *
 * Includes dispatch.c, whose __get_cpuid becomes one that clears a bit, as a hypervisor may.
 */
#include <cpuid.h>
#include <stdio.h>

static unsigned masked_leaf, masked_bit;

static int masked_cpuid(unsigned leaf, unsigned *eax, unsigned *ebx, unsigned *ecx, unsigned *edx)
{
    if (!__get_cpuid(leaf, eax, ebx, ecx, edx))
        return 0;
    if (leaf == masked_leaf)
        *ecx &= ~masked_bit;
    return 1;
}

#define __get_cpuid masked_cpuid
#include "../dispatch.c"

static const struct {
    const char *name;
    unsigned leaf, bit;
} needed[] = {
    {"SSE3", 1, 1u << 0}, {"SSSE3", 1, 1u << 9}, {"FMA", 1, 1u << 12}, {"CMPXCHG16B", 1, 1u << 13},
    {"SSE4.1", 1, 1u << 19}, {"SSE4.2", 1, 1u << 20}, {"MOVBE", 1, 1u << 22}, {"POPCNT", 1, 1u << 23},
    {"XSAVE", 1, 1u << 26}, {"OSXSAVE", 1, 1u << 27}, {"AVX", 1, 1u << 28}, {"F16C", 1, 1u << 29},
    {"LAHF", 0x80000001u, 1u << 0}, {"LZCNT", 0x80000001u, 1u << 5},
};

int main(void)
{
    const int runs = minilora_isa_runs_here(1);
    int failures = 0;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        masked_leaf = needed[i].leaf;
        masked_bit = needed[i].bit;
        for (int isa = 0; isa < minilora_isa_count(); isa++)
            if (minilora_isa_runs_here(isa) != (isa == 0)) {
                printf("FAIL: without %s %s is %s\n", needed[i].name, minilora_isa_name(isa),
                       isa ? "chosen" : "refused");
                failures++;
            }
    }
    masked_leaf = 2;            /* a leaf that nobody asks for */
    failures += minilora_isa_runs_here(1) != runs;
    printf("dispatch: %s, %d failures\n", runs ? "each masked feature" : "x86-64-v3 does not run here", failures);
    return failures != 0;
}
