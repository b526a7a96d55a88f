/* Means over one or two axes. */
#include "microstill.h"
#include "requantize.h"

void ms_mean(const ms_averaging *layer, const int8_t *in, int8_t *out) {
    const uint32_t step = layer->kept[2], block = layer->reduced[1] * step, slab = layer->kept[1] * block;
    for (uint32_t i = 0; i < layer->kept[0]; i++, in += layer->reduced[0] * slab) {
        for (uint32_t j = 0; j < layer->kept[1]; j++) {
            for (uint32_t k = 0; k < step; k++) {
                const int8_t *x = in + j * block + k;
                int32_t sum = layer->offset;
                for (uint32_t outer = layer->reduced[0]; outer > 0; outer--, x += slab) {
                    const int8_t *y = x;
                    for (uint32_t inner = layer->reduced[1]; inner > 0; inner--, y += step) {
                        sum += *y;
                    }
                }
                *out++ = ms_requantize(sum, layer->multiplier, layer->shift, layer->out_zero_point);
            }
        }
    }
}
