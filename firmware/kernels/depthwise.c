/* Depthwise convolution: bands of rows of a few channels are copied, padded and widened, then multiplied. */
#include "apart.h"
#include "depthwise.h"

/* `count` rows of borders from row `first`. */
static MS_APART void fill(const ms_depthwise_rows *rows, uint32_t first, uint32_t count) {
    int16_t *copy = rows->copy + first * rows->elements;
    for (uint32_t l = 0; l < rows->lanes; l++, copy += rows->lane) {
        for (uint32_t element = 0; element < count * rows->elements; element++) {
            copy[element] = rows->window->fill;
        }
    }
}

/* Moves the last `kept` of `count` rows to the start. */
static MS_APART void keep(const ms_depthwise_rows *rows, uint32_t kept, uint32_t count) {
    int16_t *copy = rows->copy;
    for (uint32_t l = 0; l < rows->lanes; l++, copy += rows->lane) {
        const uint32_t *from = (const uint32_t *)(const void *)(copy + (count - kept) * rows->elements);
        uint32_t *to = (uint32_t *)(void *)copy;
        for (uint32_t words = kept * rows->elements / 2; words > 0; words--) {
            *to++ = *from++;
        }
    }
}

/* Rows from `kept` to `count` of a band whose row 0 is `top` of the image. in: of the first channel. bordered:
 * whether rows of borders are there already. */
static void load(const ms_depthwise_rows *rows, int32_t top, uint32_t kept, uint32_t count, int bordered,
                 const int8_t *in) {
    const ms_window *const w = rows->window;
    const int32_t start = top + (int32_t)kept, end = top + (int32_t)count;
    int32_t first = start < 0 ? 0 : start, last = end < w->in_height ? end : w->in_height;
    first = first < end ? first : end;
    last = last > first ? last : first;
    if (!bordered) {
        fill(rows, kept, (uint32_t)(first - start));
        fill(rows, (uint32_t)(last - top), (uint32_t)(end - last));
    }
    if (last > first) {
        ms_depthwise_copy(rows, (uint32_t)(first - top), (uint32_t)(last - first),
                          in + (uint32_t)first * w->in_width * w->channels);
    }
}

void ms_depthwise_conv_2d(const ms_window *window, const ms_depthwise *layer, const int8_t *in, int8_t *out,
                          int16_t *scratch) {
    const ms_window *const w = window;
    const uint32_t multiplier = layer->depth_multiplier, row_bytes = w->out_width * w->channels * multiplier;
    const uint32_t lanes = w->channels % MS_LANES == 0 ? MS_LANES : 1;
    const uint32_t elements = MS_DEPTHWISE_ROW(w->out_width, w->stride_x, w->kernel_width, w->dilation_x);
    const uint32_t reach = (w->kernel_height - 1u) * w->dilation_y + 1;
    const uint32_t lane = ((layer->band - 1u) * w->stride_y + reach) * elements;
    ms_depthwise_rows rows = {w, layer, scratch, lanes, elements, lane, 0};
    for (uint32_t first = 0; first < w->channels; first += lanes) {
        const int bordered = first > 0 && layer->band >= w->out_height; /* no band moved them */
        uint32_t kept = 0;
        for (uint32_t y = 0; y < w->out_height; y += layer->band) {
            const uint32_t left = w->out_height - y;
            rows.height = left < layer->band ? left : layer->band;
            const uint32_t count = (rows.height - 1) * w->stride_y + reach;
            load(&rows, (int32_t)(y * w->stride_y) - w->pad_top, kept, count, bordered, in + first);
            ms_depthwise_band(&rows, first * multiplier, out + y * row_bytes + first * multiplier);
            if (rows.height < left) {
                kept = reach > w->stride_y ? reach - w->stride_y : 0;
                keep(&rows, kept, count);
            }
        }
    }
}
