/* Convolution: every window is copied to a column, three columns are multiplied at once. */
#include <string.h>

#include "dot.h"

enum { STEP = MS_PIXELS * MS_GROUP };

/* What the window of one pixel reads of a row: `before` borders, then pixels, then borders. */
typedef struct {
    int32_t left;
    uint32_t before, inside, after;
} span;

static span span_of(const ms_window *w, int32_t left) {
    span s;
    const uint32_t width = w->kernel_width;
    s.left = left;
    const uint32_t before = s.left < 0 ? (uint32_t)-s.left : 0;
    s.before = before < width ? before : width;
    const int32_t room = w->in_width - (s.left < 0 ? 0 : s.left);
    const uint32_t most = width - s.before;
    s.inside = room < (int32_t)most ? (room > 0 ? (uint32_t)room : 0) : most;
    s.after = most - s.inside;
    return s;
}

static inline int16_t *fill_groups(int8_t value, uint32_t groups, int16_t *column, uint32_t step) {
    for (; groups > 0; groups--, column += step) {
        column[0] = column[1] = column[2] = column[3] = value;
    }
    return column;
}

static inline int8_t *fill_bytes(int8_t value, uint32_t count, int8_t *bytes) {
    for (; count > 0; count--) {
        *bytes++ = value;
    }
    return bytes;
}

static inline int8_t *copy_bytes(const int8_t *from, uint32_t count, int8_t *bytes) {
    for (; count >= 4; count -= 4, from += 4, bytes += 4) {
        memcpy(bytes, from, 4);
    }
    for (; count > 0; count--) {
        *bytes++ = *from++;
    }
    return bytes;
}

/* Channels divisible by four, no dilation along the row. */
static int16_t *gather_groups(const ms_window *w, const int8_t *row, const span *s, int16_t *column,
                              uint32_t step) {
    const uint32_t groups = w->channels / MS_GROUP;
    if (row == NULL) {
        return fill_groups(w->fill, groups * w->kernel_width, column, step);
    }
    column = fill_groups(w->fill, groups * s->before, column, step);
    column = ms_widen(row + (s->left + (int32_t)s->before) * w->channels, groups * s->inside, column, step);
    return fill_groups(w->fill, groups * s->after, column, step);
}

/* Any number of channels; the bytes are widened when they are together. */
static int8_t *gather_bytes(const ms_window *w, const int8_t *row, const span *s, int8_t *bytes) {
    const uint32_t channels = w->channels;
    if (row == NULL) {
        return fill_bytes(w->fill, channels * w->kernel_width, bytes);
    }
    if (w->dilation_x == 1) {
        bytes = fill_bytes(w->fill, channels * s->before, bytes);
        bytes = copy_bytes(row + (s->left + (int32_t)s->before) * w->channels, channels * s->inside, bytes);
        return fill_bytes(w->fill, channels * s->after, bytes);
    }
    int32_t x = s->left;
    for (uint32_t kx = 0; kx < w->kernel_width; kx++, x += w->dilation_x) {
        bytes = x >= 0 && x < w->in_width ? copy_bytes(row + x * w->channels, channels, bytes)
                                          : fill_bytes(w->fill, channels, bytes);
    }
    return bytes;
}

typedef struct {
    const ms_window *window;
    const int8_t *in;
    int8_t *bytes; /* one column as it lies in the input; the last group ends in zeros */
    uint32_t groups, row_bytes;
    int32_t y, x;             /* where the window of the next pixel starts */
    int32_t last_y, last_x;   /* where the last one without borders does; below zero where there is none */
    int32_t end_x;            /* behind those of a row */
} source;

/* A window with borders or dilation. */
static void gather_border(const source *from, int16_t *column, uint32_t step) {
    const ms_window *const w = from->window;
    const span s = span_of(w, from->x);
    const int in_groups = w->channels % MS_GROUP == 0 && w->dilation_x == 1;
    int16_t *group = column;
    int8_t *bytes = from->bytes;
    int32_t y = from->y;
    for (uint32_t ky = 0; ky < w->kernel_height; ky++, y += w->dilation_y) {
        const int8_t *const row = y >= 0 && y < w->in_height ? from->in + (uint32_t)y * from->row_bytes : NULL;
        if (in_groups) {
            group = gather_groups(w, row, &s, group, step);
        } else {
            bytes = gather_bytes(w, row, &s, bytes);
        }
    }
    if (!in_groups) {
        ms_widen(from->bytes, from->groups, column, step);
    }
}

/* The column of the next pixel. */
static inline void gather(source *from, int16_t *column, uint32_t step) {
    const ms_window *const w = from->window;
    if (from->y < 0 || from->x < 0 || from->y > from->last_y || from->x > from->last_x) {
        gather_border(from, column, step);
    } else {
        const uint32_t channels = w->channels, length = w->kernel_width * channels;
        const int8_t *row = from->in + (uint32_t)from->y * from->row_bytes + (uint32_t)from->x * channels;
        uint32_t rows = w->kernel_height;
        if (channels % MS_GROUP == 0) {
            for (; rows > 0; rows--, row += from->row_bytes) {
                column = ms_widen(row, length / MS_GROUP, column, step);
            }
        } else {
            int8_t *bytes = from->bytes;
            for (; rows > 0; rows--, row += from->row_bytes) {
                bytes = copy_bytes(row, length, bytes);
            }
            ms_widen(from->bytes, from->groups, column, step);
        }
    }
    from->x += w->stride_x;
    if (from->x == from->end_x) {
        from->x = -(int32_t)w->pad_left;
        from->y += w->stride_y;
    }
}

static source source_at(const ms_window *w, const int8_t *in, int8_t *bytes, uint32_t groups, uint32_t pixel) {
    const int plain = w->dilation_y == 1 && w->dilation_x == 1;
    const source from = {w,
                         in,
                         bytes,
                         groups,
                         (uint32_t)w->in_width * w->channels,
                         (int32_t)(pixel / w->out_width * w->stride_y) - w->pad_top,
                         (int32_t)(pixel % w->out_width * w->stride_x) - w->pad_left,
                         plain ? w->in_height - w->kernel_height : -1,
                         plain ? w->in_width - w->kernel_width : -1,
                         (int32_t)(w->out_width * w->stride_x) - w->pad_left};
    return from;
}

/* Blocks of MS_PIXELS whose columns are no more than the pixels themselves, widened. */
static void pointwise(const ms_window *w, const ms_products *products, uint32_t first, uint32_t end,
                      int32_t step, const int8_t *in, int8_t *out, int16_t *columns) {
    const uint32_t channels = products->out_channels, groups = products->groups;
    for (uint32_t pixel = first; pixel != end; pixel += (uint32_t)step) {
        const int8_t *x = in + pixel * w->channels;
        int8_t *const y = out + pixel * channels;
        int8_t *const outs[MS_PIXELS] = {y, y + channels, y + 2 * channels};
        for (uint32_t p = 0; p < MS_PIXELS; p++, x += w->channels) {
            ms_widen(x, groups, columns + p * MS_GROUP, STEP);
        }
        ms_dot_3(products, columns, outs);
    }
}

static void blocks(const ms_window *w, const ms_products *products, uint32_t first, uint32_t end, int32_t step,
                   const int8_t *in, int8_t *out, int16_t *columns) {
    const uint32_t channels = products->out_channels;
    int8_t *const bytes = (int8_t *)(columns + products->groups * STEP);
    source from = source_at(w, in, bytes, products->groups, first);
    for (uint32_t pixel = first; pixel != end; pixel += (uint32_t)step) {
        int8_t *const y = out + pixel * channels;
        int8_t *const outs[MS_PIXELS] = {y, y + channels, y + 2 * channels};
        if (step < 0) {
            from = source_at(w, in, bytes, products->groups, pixel);
        }
        for (uint32_t p = 0; p < MS_PIXELS; p++) {
            gather(&from, columns + p * MS_GROUP, STEP);
        }
        ms_dot_3(products, columns, outs);
    }
}

/* The pixels after the last whole block. */
static void rest(const ms_window *w, const ms_products *products, uint32_t first, uint32_t end, const int8_t *in,
                 int8_t *out, int16_t *columns) {
    int8_t *const bytes = (int8_t *)(columns + products->groups * STEP);
    for (uint32_t pixel = end; pixel-- > first;) {
        source from = source_at(w, in, bytes, products->groups, pixel);
        gather(&from, columns, MS_GROUP);
        ms_dot_1(products, columns, out + pixel * products->out_channels);
    }
}

void ms_conv_2d(const ms_window *window, const ms_products *products, int backwards, const int8_t *in,
                int8_t *out, void *scratch) {
    const ms_window *const w = window;
    const uint32_t pixels = (uint32_t)w->out_height * w->out_width, whole = pixels - pixels % MS_PIXELS;
    const int is_pointwise = w->kernel_height == 1 && w->kernel_width == 1 && w->stride_y == 1 &&
                             w->stride_x == 1 && w->channels % MS_GROUP == 0;
    int16_t *const columns = scratch;
    memset((int8_t *)(columns + products->groups * STEP) + (products->groups - 1) * MS_GROUP, 0, MS_GROUP);
    if (backwards) {
        rest(w, products, whole, pixels, in, out, columns);
    }
    const uint32_t first = backwards ? whole - MS_PIXELS : 0;
    const uint32_t end = backwards ? 0u - MS_PIXELS : whole;
    (is_pointwise ? pointwise : blocks)(w, products, first, end, backwards ? -MS_PIXELS : MS_PIXELS, in, out,
                                        columns);
    if (!backwards) {
        rest(w, products, whole, pixels, in, out, columns);
    }
}

void ms_fully_connected(const ms_products *products, uint16_t rows, uint16_t depth, const int8_t *in,
                        int8_t *out, void *scratch) {
    int16_t *const column = scratch;
    const uint32_t whole = depth / MS_GROUP;
    for (; rows > 0; rows--, in += depth, out += products->out_channels) {
        int16_t *const tail = ms_widen(in, whole, column, MS_GROUP);
        if (depth % MS_GROUP != 0) {
            int8_t last[MS_GROUP] = {0};
            memcpy(last, in + whole * MS_GROUP, depth % MS_GROUP);
            ms_widen(last, 1, tail, MS_GROUP);
        }
        ms_dot_1(products, column, out);
    }
}
