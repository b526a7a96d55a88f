/* The portable family's elementwise sum. */
#include "add.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_add(const ms_addition *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    const ms_addition l = *layer;
    for (; count > 0; count--) {
        *out++ = ms_add_one(&l, *in_1++, *in_2++);
    }
}

#endif
