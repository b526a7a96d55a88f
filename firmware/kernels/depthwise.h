/* The inner loop of depthwise convolutions, one definition a kernel family. */
#ifndef MS_DEPTHWISE_H
#define MS_DEPTHWISE_H

#include "microstill.h"
#include "requantize.h"

/* One output channel: its weights (KH, KW), bias and scale. */
typedef struct {
    const int8_t *weights;
    int32_t bias, multiplier, shift, zero_point;
} ms_depthwise_channel;

/* `height` output rows of one channel from copied rows of `elements`. out: elements lie `step` bytes apart. */
void ms_depthwise_band(const ms_window *window, const ms_depthwise_channel *channel, int large,
                       const int16_t *copy, uint32_t elements, uint32_t height, int8_t *out, uint32_t step);

/* The same for any window and scale, written plainly. */
static inline void ms_depthwise_plain(const ms_window *w, const ms_depthwise_channel *channel,
                                      const int16_t *copy, uint32_t elements, uint32_t height, int8_t *out,
                                      uint32_t step) {
    for (uint32_t y = 0; y < height; y++, copy += w->stride_y * elements) {
        for (uint32_t x = 0; x < w->out_width; x++, out += step) {
            const int8_t *weights = channel->weights;
            int32_t sum = channel->bias;
            for (uint32_t ky = 0; ky < w->kernel_height; ky++) {
                const int16_t *in = copy + ky * w->dilation_y * elements + x * w->stride_x;
                for (uint32_t kx = 0; kx < w->kernel_width; kx++, in += w->dilation_x) {
                    sum += *in * *weights++;
                }
            }
            *out = ms_requantize_coded(sum, channel->multiplier, (uint32_t)channel->shift, channel->zero_point);
        }
    }
}

#endif
