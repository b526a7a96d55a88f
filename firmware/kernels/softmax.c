/* Softmax as TFLite's fixed-point reference computes it; source: kernels/internal/reference/softmax.h. */
#include "microstill.h"
#include "requantize.h"

/* 1 / x for x > 0 in Q12.19: the mantissa in Q0.31; bits: by how much x exceeds one. Three Newton steps. */
static int32_t reciprocal(int32_t x, int32_t *bits) {
    int32_t zeros = 0;
    while (((uint32_t)x << zeros) >> 31 == 0) {
        zeros++;
    }
    *bits = 12 - zeros;
    const int32_t fraction = (int32_t)(((uint32_t)x << zeros) - (1u << 31));
    const int32_t half_denominator = (int32_t)(((int64_t)fraction + ((int64_t)1 << 31)) >> 1);
    const int32_t intercept = 1515870810, slope = -1010580540; /* 48/17 and -32/17 in Q2.29 */
    int32_t estimate = intercept + ms_doubling_high_multiply(slope, half_denominator);
    for (int step = 0; step < 3; step++) {
        const int32_t error = (1 << 29) - ms_doubling_high_multiply(half_denominator, estimate);
        estimate += ms_doubling_high_multiply(estimate, error) * 4;
    }
    return estimate > (INT32_MAX >> 1) ? INT32_MAX : estimate * 2;
}

void ms_softmax(const int32_t *table, uint32_t rows, uint32_t depth, const int8_t *in, int8_t *out) {
    for (; rows > 0; rows--, in += depth, out += depth) {
        int32_t largest = -128, total = 0, bits;
        for (uint32_t i = 0; i < depth; i++) {
            largest = in[i] > largest ? in[i] : largest;
        }
        for (uint32_t i = 0; i < depth; i++) {
            total += ms_divide_by_power_of_two(table[largest - in[i]], 12);
        }
        const int32_t inverse = reciprocal(total, &bits);
        for (uint32_t i = 0; i < depth; i++) {
            const int32_t share = ms_doubling_high_multiply(table[largest - in[i]], inverse);
            out[i] = ms_clamped(ms_divide_by_power_of_two(share, (uint32_t)(bits + 23)) - 128, -128, 127);
        }
    }
}
