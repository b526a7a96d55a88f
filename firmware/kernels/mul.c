/* The portable family's elementwise product. */
#include "microstill.h"

#if !defined(__ARM_FEATURE_DSP)
#include "requantize.h"

void ms_mul(const ms_multiplication *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out,
            uint32_t count) {
    const ms_multiplication l = *layer;
    for (; count > 0; count--) {
        const int32_t product = (*in_1++ - l.zero_point_1) * (*in_2++ - l.zero_point_2);
        *out++ = ms_requantize_coded(product, l.multiplier, l.shift, l.zero_point_out);
    }
}

#endif
