/* The DSP family's elementwise sum. */
#include "microstill.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

/* x * multiplier / 2^(31 + shift), halves away from zero, of x = (value - zero point) * 2^20; shift > 0. */
static inline int32_t scaled(int32_t value, int32_t zero, int32_t multiplier, int32_t half, uint32_t shift) {
    const int32_t high = ms_smmulr(value * (1 << 21) - zero, multiplier);
    return (high + (high >> 31) + half) >> shift;
}

void ms_add(const ms_addition *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    const int32_t zero_1 = layer->zero_point_1 * (1 << 19), zero_2 = layer->zero_point_2 * (1 << 21);
    const int32_t multiplier = layer->multiplier_2, multiplier_out = layer->multiplier_out;
    const int32_t round = 2 * layer->zero_point_out + 1;
    const uint32_t shift = layer->shift_2, shift_out = layer->shift_out;
    const int8_t *const end = in_1 + count;
    if (shift == 0) {
        const int32_t zero = zero_1 + layer->zero_point_2 * (1 << 19);
        while (in_1 < end) {
            const int32_t sum = (*in_1++ + *in_2++) * (1 << 19) - zero;
            *out++ = (int8_t)ms_requantize_divided(sum, multiplier_out, shift_out, round);
        }
        return;
    }
    const int32_t half = 1 << (shift - 1);
    while (in_1 < end) {
        const int32_t sum =
            *in_1++ * (1 << 19) - zero_1 + scaled(*in_2++, zero_2, multiplier, half, shift);
        *out++ = (int8_t)ms_requantize_divided(sum, multiplier_out, shift_out, round);
    }
}

#endif
