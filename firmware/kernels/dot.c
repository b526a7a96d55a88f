/* Sums of products for any scale, which the DSP family has for unusual ones, and the portable family's others. */
#include "dot.h"

#include <string.h>

#include "requantize.h"

/* What the even input of a pair is, less 128. */
static inline int32_t even_input(int32_t even, int32_t odd) {
#if defined(__ARM_FEATURE_DSP)
    return even + 256 * odd;
#else
    (void)odd;
    return even;
#endif
}

void ms_dot_exact(const ms_products *products, const int16_t *column, uint32_t pixels, int32_t correction,
                  uint32_t first, int8_t *out) {
    const uint32_t groups = products->groups;
    const uint32_t words = 2 * groups + 5; /* of a pair of channels */
    for (uint32_t channel = first; channel < products->out_channels; channel++) {
        const int32_t *pair = products->stream + channel / 2 * words;
        const uint8_t *odd_weights = (const uint8_t *)(pair + 2) + channel % 2 * MS_GROUP;
        const int8_t *even_weights = (const int8_t *)odd_weights + 1;
        const int16_t *odd = column, *even = column + MS_COLUMN_EVEN(pixels);
        uint32_t sum = (uint32_t)pair[channel % 2] + (uint32_t)correction; /* may wrap on the way */
        for (uint32_t group = 0; group < groups; group++) {
            sum += (uint32_t)(odd[0] * odd_weights[0] + odd[1] * odd_weights[2] +
                              even_input(even[0], odd[0]) * even_weights[0] +
                              even_input(even[1], odd[1]) * even_weights[2]);
            odd_weights += 2 * MS_GROUP;
            even_weights += 2 * MS_GROUP;
            odd += MS_COLUMN_STEP(pixels);
            even += MS_COLUMN_STEP(pixels);
        }
        const int32_t *scale = pair + 2 + 2 * groups;
        const uint32_t code = ((uint32_t)scale[2] >> (channel % 2 * 16)) & 0xff;
        out[channel] = ms_requantize_coded((int32_t)sum, scale[channel % 2], code, products->out_zero_point);
    }
}

#if !defined(__ARM_FEATURE_DSP)

static int32_t widen(const int8_t *bytes, uint32_t groups, int16_t *column, uint32_t pixels) {
    int32_t correction = 0;
    for (; groups > 0; groups--, bytes += MS_GROUP, column += MS_COLUMN_STEP(pixels)) {
        correction -= 128 * (bytes[1] + bytes[3]);
        column[0] = bytes[1];
        column[1] = bytes[3];
        column[MS_COLUMN_EVEN(pixels)] = (int16_t)(bytes[0] - 128);
        column[MS_COLUMN_EVEN(pixels) + 1] = (int16_t)(bytes[2] - 128);
    }
    return correction;
}

int32_t ms_widen_alone(const int8_t *bytes, uint32_t groups, int16_t *column) {
    return widen(bytes, groups, column, 1);
}

int32_t ms_widen_among(const int8_t *bytes, uint32_t groups, int16_t *column) {
    return widen(bytes, groups, column, MS_PIXELS);
}

void ms_widen_all(const int8_t *bytes, uint32_t groups, int16_t *columns, uint32_t distance,
                  int32_t corrections[MS_PIXELS]) {
    for (uint32_t pixel = 0; pixel < MS_PIXELS; pixel++) {
        corrections[pixel] += ms_widen_among(bytes + pixel * distance, groups, columns + 2 * pixel);
    }
}

void ms_join(const int8_t *row, uint32_t length, uint32_t rows, uint32_t row_bytes, int8_t *bytes) {
    for (; rows > 0; rows--, row += row_bytes, bytes += length) {
        memcpy(bytes, row, length);
    }
}

void ms_dot_3(const ms_products *products, const int16_t *columns, const int32_t corrections[MS_PIXELS],
              int8_t *out) {
    for (uint32_t pixel = 0; pixel < MS_PIXELS; pixel++) {
        ms_dot_exact(products, columns + 2 * pixel, MS_PIXELS, corrections[pixel], 0,
                     out + pixel * products->out_channels);
    }
}

void ms_dot_1(const ms_products *products, const int16_t *column, int32_t correction, int8_t *out) {
    ms_dot_exact(products, column, 1, correction, 0, out);
}

#endif
