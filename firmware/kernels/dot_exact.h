/* Sums of products for any scale, written plainly. */
#ifndef MS_DOT_EXACT_H
#define MS_DOT_EXACT_H

#include "dot.h"
#include "requantize.h"

/* The output channels from `first`, even, of one pixel, whose groups lie `step` elements apart. */
static inline void ms_dot_exact(const ms_products *products, const int16_t *column, uint32_t step,
                                int8_t *out, uint32_t first) {
    const uint32_t groups = products->groups;
    const uint32_t words = 2 * groups + 5; /* of a pair of channels */
    for (uint32_t channel = first; channel < products->out_channels; channel++) {
        const int32_t *pair = products->stream + channel / 2 * words;
        const int8_t *weights = (const int8_t *)(pair + 2) + channel % 2 * MS_GROUP;
        const int16_t *x = column;
        int32_t sum = pair[channel % 2];
        for (uint32_t group = 0; group < groups; group++, weights += 2 * MS_GROUP, x += step) {
            sum += x[0] * weights[0] + x[1] * weights[2] + x[2] * weights[1] + x[3] * weights[3];
        }
        const int32_t *scale = pair + 2 + 2 * groups;
        const uint32_t code = ((uint32_t)scale[2] >> (channel % 2 * 16)) & 0xff;
        out[channel] = ms_requantize_coded(sum, scale[channel % 2], code, products->out_zero_point);
    }
}

#endif
