/* The DSP family's inner loops of depthwise convolutions around its assembly (depthwise_dsp.S). */
#include "depthwise.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

enum { KERNEL = 3 };

/* What the assembly reads, in its order. Weights of a row are held as (0, 1) and (1, 2). */
typedef struct {
    const int16_t *rows[KERNEL];
    uint32_t weights[KERNEL][2];
    int32_t bias, multiplier, shift, round;
    uint32_t step, row_bytes, width_bytes, height;
} ms_depthwise_3x3;

void ms_depthwise_3x3_stride_1(const ms_depthwise_3x3 *layer, int8_t *out);
void ms_depthwise_3x3_stride_2(const ms_depthwise_3x3 *layer, int8_t *out);

/* Two halfwords as one word. */
static inline uint32_t pair(int32_t low, int32_t high) {
    return ms_pkhbt((uint32_t)low, (uint32_t)high);
}

void ms_depthwise_band(const ms_window *window, const ms_depthwise_channel *channel, int large,
                       const int16_t *copy, uint32_t elements, uint32_t height, int8_t *out, uint32_t step) {
    const ms_window *const w = window;
    const int is_3x3 = w->kernel_height == KERNEL && w->kernel_width == KERNEL && w->dilation_y == 1 &&
                       w->dilation_x == 1 && w->stride_x == w->stride_y && w->stride_x <= 2;
    if (large || !is_3x3 || channel->shift >= MS_UNDIVIDED) {
        ms_depthwise_plain(w, channel, copy, elements, height, out, step);
        return;
    }
    const int8_t *const k = channel->weights;
    const ms_depthwise_3x3 layer = {{copy, copy + elements, copy + 2 * elements},
                                    {{pair(k[0], k[1]), pair(k[1], k[2])},
                                     {pair(k[3], k[4]), pair(k[4], k[5])},
                                     {pair(k[6], k[7]), pair(k[7], k[8])}},
                                    channel->bias,
                                    channel->multiplier,
                                    channel->shift,
                                    2 * channel->zero_point + 1,
                                    step,
                                    elements * w->stride_y * sizeof *copy,
                                    w->out_width * w->stride_x * sizeof *copy,
                                    height};
    if (w->stride_x == 1) {
        ms_depthwise_3x3_stride_1(&layer, out);
    } else {
        ms_depthwise_3x3_stride_2(&layer, out);
    }
}

#endif
