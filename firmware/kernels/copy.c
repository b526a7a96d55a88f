/* Operators that move bytes. */
#include <string.h>

#include "microstill.h"

void ms_copy_rows(uint32_t rows, uint32_t bytes, uint32_t first, uint32_t step, const int8_t *in, int8_t *out) {
    for (out += first; rows > 0; rows--, in += bytes, out += step) {
        memcpy(out, in, bytes);
    }
}

static int8_t *fill(int8_t *out, int8_t value, uint32_t count) {
    memset(out, value, count);
    return out + count;
}

void ms_pad(const ms_padding *padding, const int8_t *in, int8_t *out) {
    const ms_padding p = *padding;
    out = fill(out, p.fill, p.top);
    for (uint32_t row = 0; row < p.rows; row++) {
        out = fill(out, p.fill, p.left);
        for (uint32_t pixel = 0; pixel < p.pixels; pixel++, in += p.bytes) {
            out = fill(out, p.fill, p.front);
            memmove(out, in, p.bytes);
            out = fill(out + p.bytes, p.fill, p.back);
        }
        out = fill(out, p.fill, p.right);
    }
    fill(out, p.fill, p.bottom);
}

void ms_strided_slice(const ms_slice *slice, const int8_t *in, int8_t *out) {
    const uint32_t *const sizes = slice->sizes, *const steps = slice->steps;
    in += slice->start;
    for (uint32_t i = 0; i < sizes[2]; i++, in += steps[2]) {
        const int8_t *row = in;
        for (uint32_t j = 0; j < sizes[1]; j++, row += steps[1]) {
            const int8_t *x = row;
            for (uint32_t k = 0; k < sizes[0]; k++, x += steps[0], out += slice->bytes) {
                memmove(out, x, slice->bytes);
            }
        }
    }
}

void ms_resize_nearest_neighbor(const ms_resize *resize, const int8_t *in, int8_t *out) {
    const uint32_t channels = resize->channels, row_bytes = resize->in_width * channels;
    for (uint32_t y = 0; y < resize->out_height; y++) {
        const int8_t *const row = in + resize->rows[y] * row_bytes;
        for (uint32_t x = 0; x < resize->out_width; x++, out += channels) {
            memmove(out, row + resize->columns[x] * channels, channels);
        }
    }
}
