/* The portable family's elementwise sum. */
#include "microstill.h"
#include "requantize.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_add(const ms_addition *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    const ms_addition l = *layer;
    for (; count > 0; count--) {
        const int32_t x = (*in_1++ - l.zero_point_1) * (1 << 19);
        const int32_t y = ms_doubling_high_multiply((*in_2++ - l.zero_point_2) * (1 << 20), l.multiplier_2);
        const int32_t sum = x + ms_divide_by_power_of_two(y, l.shift_2);
        *out++ = ms_requantize(sum, l.multiplier_out, -1 - l.shift_out, l.zero_point_out);
    }
}

#endif
