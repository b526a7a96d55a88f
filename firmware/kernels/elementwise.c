/* Elementwise operators. */
#include "microstill.h"
#include "requantize.h"

void ms_clamp(int8_t *values, uint32_t count, int8_t low, int8_t high) {
    for (; count > 0; count--, values++) {
        *values = ms_clamped(*values, low, high);
    }
}

void ms_lookup(const int8_t *table, const int8_t *in, int8_t *out, uint32_t count) {
    table += 128;
    for (; count > 0; count--) {
        *out++ = table[*in++];
    }
}
