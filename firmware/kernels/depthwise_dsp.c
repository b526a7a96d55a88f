/* The DSP family's inner loops of depthwise convolutions around its assembly (depthwise_dsp.S). */
#include "apart.h"
#include "depthwise.h"

#if defined(__ARM_FEATURE_DSP)

enum { LARGEST_HEIGHT = 7 };

/* What the assembly reads of a channel, in its order.
 *
 * multiplier: twice the layer's, less 2^32. round: 2 * zero point + 1. step: bytes between outputs.
 * A row of outputs is `fours` times four and `left` more; skip: bytes from behind what the last of them are
 * computed from to the next row; end: bytes of all these rows. row_bytes: from a row that weights are multiplied
 * with to the next. height: rows of weights. */
typedef struct {
    int32_t bias, multiplier, shift, round;
    uint32_t step, fours, left, skip, end, row_bytes, stride, height;
} ms_depthwise_channel;

typedef void kernel(const ms_depthwise_channel *channel, const int16_t *copy, const int8_t *weights, int8_t *out);
kernel ms_depthwise_3x3_stride_1, ms_depthwise_3x3_stride_2, ms_depthwise_5, ms_depthwise_7;

/* What computes a window; NULL: nothing but the plain loop does. */
static kernel *kernel_of(const ms_window *w) {
    if (w->dilation_x != 1 || w->stride_x > 2) {
        return 0;
    }
    if (w->kernel_width == 3 && w->kernel_height == 3 && w->dilation_y == 1) {
        return w->stride_x == 1 ? ms_depthwise_3x3_stride_1 : ms_depthwise_3x3_stride_2;
    }
    const int is_any = (w->kernel_width == 5 || w->kernel_width == 7) && w->kernel_height <= LARGEST_HEIGHT;
    return !is_any ? 0 : w->kernel_width == 5 ? ms_depthwise_5 : ms_depthwise_7;
}

static MS_APART void plain(const ms_depthwise_rows *rows, uint32_t channel, const int16_t *copy, int8_t *out) {
    ms_depthwise_plain(rows, channel, copy, out);
}

static MS_APART void plain_copy(const ms_depthwise_rows *rows, uint32_t first, uint32_t count, const int8_t *in) {
    ms_depthwise_plain_copy(rows, first, count, in);
}

/* How the assembly copies a row of MS_LANES channels, in its order.
 *
 * channels: bytes from a pixel to the next. lane, lanes_3: bytes from a channel's copies to the next's, and to the
 * third after it. fill: twice, as int16. left, right: borders; inside: pixels, of which the first has a border
 * beside it where left is odd. skip: bytes from behind these to the next row. */
typedef struct {
    uint32_t channels, lane, lanes_3, fill, left, pairs, single, right_pairs, skip;
} ms_depthwise_layout;

void ms_depthwise_copy_4(const ms_depthwise_layout *layout, const int8_t *in, int16_t *copy, uint32_t rows);

void ms_depthwise_copy(const ms_depthwise_rows *rows, uint32_t first, uint32_t count, const int8_t *in) {
    const ms_window *const w = rows->window;
    const uint32_t pad = w->pad_left, elements = rows->elements;
    if (rows->lanes != MS_LANES || pad >= elements) {
        plain_copy(rows, first, count, in);
        return;
    }
    const uint32_t inside = w->in_width < elements - pad ? w->in_width : elements - pad;
    const uint32_t paired = inside - pad % 2; /* those after the one beside a border */
    const ms_depthwise_layout layout = {.channels = w->channels,
                                        .lane = rows->lane * (uint32_t)sizeof *rows->copy,
                                        .lanes_3 = 3 * rows->lane * (uint32_t)sizeof *rows->copy,
                                        .fill = (uint16_t)w->fill * 0x10001u,
                                        .left = pad,
                                        .pairs = paired / 2,
                                        .single = paired % 2,
                                        .right_pairs = (elements - pad - inside) / 2,
                                        .skip = (w->in_width - inside) * w->channels};
    ms_depthwise_copy_4(&layout, in, rows->copy + first * elements, count);
}

void ms_depthwise_band(const ms_depthwise_rows *rows, uint32_t first, int8_t *out) {
    const ms_window *const w = rows->window;
    const ms_depthwise *const l = rows->layer;
    kernel *const compute = l->large ? 0 : kernel_of(w);
    const uint32_t pixel_bytes = sizeof *rows->copy, pitch = w->stride_y * rows->elements;
    const uint32_t left = w->out_width % 4;
    const uint32_t computed = w->out_width - left + (left == 3 ? 4 : left > 0 ? 2 : 0);
    ms_depthwise_channel channel = {.round = 2 * l->out_zero_point + 1,
                                    .step = w->channels * l->depth_multiplier,
                                    .fours = w->out_width / 4,
                                    .left = left,
                                    .skip = (pitch - computed * w->stride_x) * pixel_bytes,
                                    .end = pitch * rows->height * pixel_bytes,
                                    .row_bytes = w->dilation_y * rows->elements * pixel_bytes,
                                    .stride = w->stride_x,
                                    .height = w->kernel_height};
    const uint32_t weights_bytes = w->kernel_height * w->kernel_width;
    const int8_t *weights = l->weights + first * weights_bytes;
    const int16_t *copy = rows->copy;
    const uint32_t count = rows->lanes * l->depth_multiplier;
    uint32_t sharing = l->depth_multiplier; /* channels left that have the same input */
    for (uint32_t index = first; index < first + count; index++, out++, weights += weights_bytes) {
        channel.shift = l->shift[index];
        if (compute && channel.shift < MS_UNDIVIDED) {
            channel.bias = l->bias[index];
            channel.multiplier = (int32_t)((uint32_t)l->multiplier[index] * 2);
            compute(&channel, copy, weights, out);
        } else {
            plain(rows, index, copy, out);
        }
        if (--sharing == 0) {
            sharing = l->depth_multiplier;
            copy += rows->lane;
        }
    }
}

#endif
