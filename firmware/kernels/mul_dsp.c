/* The DSP family's elementwise product. */
#include "microstill.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

void ms_mul(const ms_multiplication *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out,
            uint32_t count) {
    const ms_multiplication l = *layer;
    const int32_t round = 2 * l.zero_point_out + 1;
    const int8_t *const end = in_1 + count;
    while (in_1 < end) {
        const int32_t product = (*in_1++ - l.zero_point_1) * (*in_2++ - l.zero_point_2);
        *out++ = l.large ? ms_requantize_coded(product, l.multiplier, l.shift, l.zero_point_out)
                         : (int8_t)ms_requantize_fast(product, l.multiplier, l.shift, round);
    }
}

#endif
