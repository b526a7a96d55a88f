/* Depthwise convolution: bands of rows of a few channels are copied, padded and widened, then multiplied. */
#include "depthwise.h"
#include "depthwise_row.h"

/* Copies the rows that a band reads; the first `kept` are already there. top: of the first row, in the input. */
static void load(const ms_window *w, const int8_t *in, uint32_t lanes, int32_t top, uint32_t kept, uint32_t rows,
                 int16_t *copy, uint32_t elements, uint32_t lane) {
    for (uint32_t row = kept; row < rows; row++) {
        const int32_t y = top + (int32_t)row;
        const int inside = y >= 0 && y < w->in_height;
        ms_depthwise_row(w, inside ? in + (uint32_t)y * w->in_width * w->channels : NULL, lanes,
                         copy + row * elements, elements, lane);
    }
}

/* Moves the last `kept` of `rows` rows of every lane to its start. */
static void keep(uint32_t lanes, uint32_t kept, uint32_t rows, int16_t *copy, uint32_t elements, uint32_t lane) {
    for (uint32_t l = 0; l < lanes; l++, copy += lane) {
        const uint32_t *from = (const uint32_t *)(const void *)(copy + (rows - kept) * elements);
        uint32_t *to = (uint32_t *)(void *)copy;
        for (uint32_t words = kept * elements / 2; words > 0; words--) {
            *to++ = *from++;
        }
    }
}

void ms_depthwise_conv_2d(const ms_window *window, const ms_depthwise *layer, const int8_t *in, int8_t *out,
                          int16_t *scratch) {
    const ms_window *const w = window;
    const uint32_t multiplier = layer->depth_multiplier, out_channels = w->channels * multiplier;
    const uint32_t lanes = w->channels % MS_LANES == 0 ? MS_LANES : 1;
    const uint32_t elements = MS_DEPTHWISE_ROW(w->out_width, w->stride_x, w->kernel_width, w->dilation_x);
    const uint32_t reach = (w->kernel_height - 1u) * w->dilation_y + 1;
    const uint32_t lane = ((layer->band - 1u) * w->stride_y + reach) * elements;
    for (uint32_t first = 0; first < w->channels; first += lanes) {
        uint32_t kept = 0;
        for (uint32_t y = 0; y < w->out_height; y += layer->band) {
            const uint32_t left = w->out_height - y, height = left < layer->band ? left : layer->band;
            const uint32_t rows = (height - 1) * w->stride_y + reach;
            load(w, in + first, lanes, (int32_t)(y * w->stride_y) - w->pad_top, kept, rows, scratch, elements,
                 lane);
            for (uint32_t o = first * multiplier; o < (first + lanes) * multiplier; o++) {
                const ms_depthwise_channel channel = {layer->weights + o * w->kernel_height * w->kernel_width,
                                                      layer->bias[o], layer->multiplier[o], layer->shift[o],
                                                      layer->out_zero_point};
                ms_depthwise_band(w, &channel, layer->large, scratch + (o / multiplier - first) * lane, elements,
                                  height, out + y * w->out_width * out_channels + o, out_channels);
            }
            if (height < left) {
                kept = reach > w->stride_y ? reach - w->stride_y : 0;
                keep(lanes, kept, rows, scratch, elements, lane);
            }
        }
    }
}
