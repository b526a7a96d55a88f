/* The DSP family's sums of products around its assembly (dot_dsp.S). */
#include "dot.h"

#if defined(__ARM_FEATURE_DSP)
#include <stddef.h>

/* Where the assembly expects the fields of ms_products. */
typedef char layout_of_products[offsetof(ms_products, stream) == 0 && offsetof(ms_products, groups) == 4 &&
                                        offsetof(ms_products, out_channels) == 6 &&
                                        offsetof(ms_products, out_zero_point) == 8
                                    ? 1
                                    : -1];

/* All pairs of output channels, of which there is at least one; sums are not large. */
void ms_dot_3_pairs(const ms_products *products, const int16_t *columns, const int32_t corrections[MS_PIXELS],
                    int8_t *out);
void ms_dot_1_pairs(const ms_products *products, const int16_t *column, int32_t correction, int8_t *out);

/* How many output channels the assembly computes. */
static inline uint32_t paired(const ms_products *products) {
    return products->large ? 0 : products->out_channels & ~1u;
}

void ms_dot_3(const ms_products *products, const int16_t *columns, const int32_t corrections[MS_PIXELS],
              int8_t *out) {
    const uint32_t first = paired(products);
    if (first > 0) {
        ms_dot_3_pairs(products, columns, corrections, out);
    }
    for (uint32_t pixel = 0; first < products->out_channels && pixel < MS_PIXELS; pixel++) {
        ms_dot_exact(products, columns + 2 * pixel, MS_PIXELS, corrections[pixel], first,
                     out + pixel * products->out_channels);
    }
}

void ms_dot_1(const ms_products *products, const int16_t *column, int32_t correction, int8_t *out) {
    const uint32_t first = paired(products);
    if (first > 0) {
        ms_dot_1_pairs(products, column, correction, out);
    }
    if (first < products->out_channels) {
        ms_dot_exact(products, column, 1, correction, first, out);
    }
}

#endif
