/* The inner loops of depthwise convolutions, one definition a kernel family. */
#ifndef MS_DEPTHWISE_H
#define MS_DEPTHWISE_H

#include "microstill.h"
#include "requantize.h"

/* Copied rows of MS_LANES channels, or of one: padded, widened, one channel after the other. */
typedef struct {
    const ms_window *window;
    const ms_depthwise *layer;
    int16_t *copy;           /* of the first channel, 4-byte aligned */
    uint32_t lanes;          /* channels */
    uint32_t elements, lane; /* of a row, even; from a channel to the next */
    uint32_t height;         /* output rows */
} ms_depthwise_rows;

/* Copies `count` rows of the image, of which `in` is the first element, to the rows from `first`. */
void ms_depthwise_copy(const ms_depthwise_rows *rows, uint32_t first, uint32_t count, const int8_t *in);

/* Computes the output channels from `channel` that the copied channels have. out: of the first of them. */
void ms_depthwise_band(const ms_depthwise_rows *rows, uint32_t channel, int8_t *out);

/* `ms_depthwise_copy` written plainly. */
static inline void ms_depthwise_plain_copy(const ms_depthwise_rows *rows, uint32_t first, uint32_t count,
                                           const int8_t *in) {
    const ms_window *const w = rows->window;
    const uint32_t elements = rows->elements;
    const uint32_t left = w->pad_left < elements ? w->pad_left : elements, room = elements - left;
    const uint32_t inside = room < w->in_width ? room : w->in_width;
    for (uint32_t l = 0; l < rows->lanes; l++) {
        int16_t *to = rows->copy + l * rows->lane + first * elements;
        for (uint32_t row = 0; row < count; row++) {
            const int8_t *from = in + row * w->in_width * w->channels + l;
            for (uint32_t x = 0; x < elements; x++) {
                const int is_inside = x >= left && x < left + inside;
                *to++ = is_inside ? *from : w->fill;
                from += is_inside ? w->channels : 0;
            }
        }
    }
}

/* One output channel, for any window and scale, written plainly. copy: of its input channel. */
static inline void ms_depthwise_plain(const ms_depthwise_rows *rows, uint32_t channel, const int16_t *copy,
                                      int8_t *out) {
    const ms_window *const w = rows->window;
    const ms_depthwise *const layer = rows->layer;
    const uint32_t step = w->channels * layer->depth_multiplier;
    for (uint32_t y = 0; y < rows->height; y++, copy += w->stride_y * rows->elements) {
        for (uint32_t x = 0; x < w->out_width; x++, out += step) {
            const int8_t *weights = layer->weights + channel * w->kernel_height * w->kernel_width;
            uint32_t sum = (uint32_t)layer->bias[channel]; /* may wrap on the way */
            for (uint32_t ky = 0; ky < w->kernel_height; ky++) {
                const int16_t *in = copy + ky * w->dilation_y * rows->elements + x * w->stride_x;
                for (uint32_t kx = 0; kx < w->kernel_width; kx++, in += w->dilation_x) {
                    sum += (uint32_t)(*in * *weights++);
                }
            }
            *out = ms_requantize_coded((int32_t)sum, layer->multiplier[channel], layer->shift[channel],
                                       layer->out_zero_point);
        }
    }
}

#endif
