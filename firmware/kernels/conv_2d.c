/* Convolution: every window is copied to a column, three columns are multiplied at once. */
#include <stddef.h>
#include <string.h>

#include "apart.h"
#include "dot.h"

/* What a convolution copies from, and where its next pixel lies. */
typedef struct {
    const ms_window *window;
    const int8_t *in;
    int8_t *bytes;           /* one column as it lies in the input; the last group ends in zeros */
    uint32_t pixels;         /* whose columns lie together */
    uint32_t groups, row_bytes;
    int16_t border[MS_GROUP]; /* a group of borders, as a column alone */
    int32_t border_correction;
    int32_t y, x;           /* where the window of the next pixel starts */
    int32_t last_y, last_x; /* where the last one without borders does; below zero where there is none */
    int32_t end_x;          /* behind those of a row */
} source;

/* What the window of one pixel reads of a row: `before` borders, then pixels, then borders. */
typedef struct {
    int32_t first; /* pixel of the row */
    uint32_t before, inside, after;
} span;

static span span_of(const ms_window *w, int32_t left) {
    span s;
    const uint32_t width = w->kernel_width, before = left < 0 ? (uint32_t)-left : 0;
    s.before = before < width ? before : width;
    s.first = left + (int32_t)s.before;
    const int32_t room = w->in_width - (left < 0 ? 0 : left);
    const uint32_t most = width - s.before;
    s.inside = room < (int32_t)most ? (room > 0 ? (uint32_t)room : 0) : most;
    s.after = most - s.inside;
    return s;
}

static int32_t widen(const source *from, const int8_t *bytes, uint32_t groups, int16_t *column) {
    return (from->pixels == 1 ? ms_widen_alone : ms_widen_among)(bytes, groups, column);
}

/* Columns of borders; returns their end. */
static MS_APART int16_t *fill_groups(const source *from, uint32_t groups, int16_t *column) {
    for (; groups > 0; groups--, column += MS_COLUMN_STEP(from->pixels)) {
        memcpy(column, from->border, sizeof from->border / 2);
        memcpy(column + MS_COLUMN_EVEN(from->pixels), from->border + MS_GROUP / 2, sizeof from->border / 2);
    }
    return column;
}

static MS_APART int8_t *fill_bytes(int8_t value, uint32_t count, int8_t *bytes) {
    for (; count > 0; count--) {
        *bytes++ = value;
    }
    return bytes;
}

static MS_APART int8_t *copy_bytes(const int8_t *from, uint32_t count, int8_t *bytes) {
    for (; count > 0; count--) {
        *bytes++ = *from++;
    }
    return bytes;
}

/* Any number of channels; the bytes are widened when they are together. row: NULL is a row of borders. */
static MS_APART int8_t *gather_bytes(const ms_window *w, const int8_t *row, const span *s, int32_t left,
                                     int8_t *bytes) {
    const uint32_t channels = w->channels;
    if (row == NULL) {
        return fill_bytes(w->fill, channels * w->kernel_width, bytes);
    }
    if (w->dilation_x == 1) {
        bytes = fill_bytes(w->fill, channels * s->before, bytes);
        bytes = copy_bytes(row + s->first * w->channels, channels * s->inside, bytes);
        return fill_bytes(w->fill, channels * s->after, bytes);
    }
    for (uint32_t kx = 0; kx < w->kernel_width; kx++, left += w->dilation_x) {
        bytes = left >= 0 && left < w->in_width ? copy_bytes(row + left * w->channels, channels, bytes)
                                                : fill_bytes(w->fill, channels, bytes);
    }
    return bytes;
}

/* A window with borders or dilation; returns its correction. */
static MS_APART int32_t gather_border(const source *from, int16_t *column) {
    const ms_window *const w = from->window;
    const span s = span_of(w, from->x);
    const int in_groups = w->channels % MS_GROUP == 0 && w->dilation_x == 1;
    const uint32_t groups = w->channels / MS_GROUP;
    int8_t *bytes = from->bytes;
    uint32_t borders = 0;
    int32_t correction = 0, y = from->y;
    for (uint32_t ky = 0; ky < w->kernel_height; ky++, y += w->dilation_y) {
        const int8_t *const row = y >= 0 && y < w->in_height ? from->in + (uint32_t)y * from->row_bytes : NULL;
        if (!in_groups) {
            bytes = gather_bytes(w, row, &s, from->x, bytes);
            continue;
        }
        const uint32_t inside = row ? groups * s.inside : 0;
        const uint32_t before = row ? groups * s.before : groups * w->kernel_width;
        const uint32_t after = row ? groups * s.after : 0;
        column = fill_groups(from, before, column);
        if (inside > 0) {
            correction += widen(from, row + s.first * w->channels, inside, column);
            column += inside * MS_COLUMN_STEP(from->pixels);
        }
        column = fill_groups(from, after, column);
        borders += before + after;
    }
    if (!in_groups) {
        return widen(from, from->bytes, from->groups, column);
    }
    return correction + (int32_t)borders * from->border_correction;
}

static const int8_t *start(const source *from) {
    return from->in + (uint32_t)from->y * from->row_bytes + (uint32_t)from->x * from->window->channels;
}

static void step(source *from, uint32_t pixels) {
    const ms_window *const w = from->window;
    from->x += (int32_t)(pixels * w->stride_x);
    if (from->x == from->end_x) {
        from->x = -(int32_t)w->pad_left;
        from->y += w->stride_y;
    }
}

/* Whether the windows of the next pixels lie in one row of the image and have no borders. */
static int are_inside(const source *from, uint32_t pixels) {
    const int32_t last = from->x + (int32_t)((pixels - 1) * from->window->stride_x);
    return from->y >= 0 && from->x >= 0 && from->y <= from->last_y && last <= from->last_x;
}

/* The column of the next pixel; returns its correction. */
static int32_t gather(source *from, int16_t *column) {
    const ms_window *const w = from->window;
    int32_t correction = 0;
    if (!are_inside(from, 1)) {
        correction = gather_border(from, column);
    } else {
        const uint32_t length = (uint32_t)w->kernel_width * w->channels;
        const int8_t *row = start(from);
        if (w->channels % MS_GROUP == 0) {
            const uint32_t groups = length / MS_GROUP;
            for (uint32_t rows = w->kernel_height; rows > 0; rows--, row += from->row_bytes) {
                correction += widen(from, row, groups, column);
                column += groups * MS_COLUMN_STEP(from->pixels);
            }
        } else {
            ms_join(row, length, w->kernel_height, from->row_bytes, from->bytes);
            correction = widen(from, from->bytes, from->groups, column);
        }
    }
    step(from, 1);
    return correction;
}

/* The columns of the next MS_PIXELS pixels, and their corrections. */
static void gather_block(source *from, int16_t *columns, int32_t corrections[MS_PIXELS]) {
    const ms_window *const w = from->window;
    const uint32_t channels = w->channels;
    if (channels % MS_GROUP != 0 || !are_inside(from, MS_PIXELS)) {
        for (uint32_t p = 0; p < MS_PIXELS; p++) {
            corrections[p] = gather(from, columns + 2 * p);
        }
        return;
    }
    const uint32_t groups = w->kernel_width * channels / MS_GROUP, distance = w->stride_x * channels;
    const int8_t *row = start(from);
    memset(corrections, 0, MS_PIXELS * sizeof *corrections);
    for (uint32_t rows = w->kernel_height; rows > 0; rows--, row += from->row_bytes) {
        ms_widen_all(row, groups, columns, distance, corrections);
        columns += groups * MS_COLUMN_STEP(MS_PIXELS);
    }
    step(from, MS_PIXELS);
}

static source source_of(const ms_window *w, const int8_t *in, int8_t *bytes, uint32_t groups) {
    const int plain = w->dilation_y == 1 && w->dilation_x == 1;
    const int32_t pad_left = w->pad_left, room = w->in_width - w->kernel_width;
    const int32_t last_x = (w->out_width - 1) * w->stride_x - pad_left;
    source from = {.window = w,
                   .in = in,
                   .bytes = bytes,
                   .pixels = MS_PIXELS,
                   .groups = groups,
                   .row_bytes = (uint32_t)w->in_width * w->channels,
                   .last_y = plain ? w->in_height - w->kernel_height : -1,
                   .last_x = plain ? (room < last_x ? room : last_x) : -1,
                   .end_x = w->out_width * w->stride_x - pad_left};
    const int8_t border[MS_GROUP] = {w->fill, w->fill, w->fill, w->fill};
    from.border_correction = ms_widen_alone(border, 1, from.border);
    return from;
}

static void move_to(source *from, uint32_t pixel) {
    const ms_window *const w = from->window;
    from->y = (int32_t)(pixel / w->out_width * w->stride_y) - w->pad_top;
    from->x = (int32_t)(pixel % w->out_width * w->stride_x) - w->pad_left;
}

/* Whole blocks of MS_PIXELS, `count` of them. */
static void blocks(source *from, const ms_products *products, uint32_t count, int backwards, int8_t *out,
                   int16_t *columns) {
    int32_t corrections[MS_PIXELS];
    move_to(from, 0);
    for (uint32_t block = 0; block < count; block++) {
        const uint32_t pixel = (backwards ? count - 1 - block : block) * MS_PIXELS;
        if (backwards) {
            move_to(from, pixel);
        }
        gather_block(from, columns, corrections);
        ms_dot_3(products, columns, corrections, out + pixel * products->out_channels);
    }
}

/* The pixels after the last whole block, one by one. */
static void rest(source *from, const ms_products *products, uint32_t first, uint32_t end, int backwards,
                 int8_t *out, int16_t *columns) {
    from->pixels = 1;
    for (uint32_t done = 0; done < end - first; done++) {
        const uint32_t pixel = backwards ? end - 1 - done : first + done;
        move_to(from, pixel);
        const int32_t correction = gather(from, columns);
        ms_dot_1(products, columns, correction, out + pixel * products->out_channels);
    }
    from->pixels = MS_PIXELS;
}

void ms_conv_2d(const ms_window *window, const ms_products *products, int backwards, const int8_t *in,
                int8_t *out, void *scratch) {
    ms_window w = *window;
    const uint32_t pixels = (uint32_t)w.out_height * w.out_width, whole = pixels - pixels % MS_PIXELS;
    if (w.kernel_height == 1 && w.kernel_width == 1 && w.stride_y == 1 && w.stride_x == 1 &&
        w.in_height == w.out_height && w.in_width == w.out_width && pixels <= UINT16_MAX) {
        w.in_height = w.out_height = 1;
        w.in_width = w.out_width = (uint16_t)pixels;
    }
    int16_t *const columns = scratch;
    int8_t *const bytes = (int8_t *)(columns + products->groups * MS_COLUMN_STEP(MS_PIXELS));
    memset(bytes + (products->groups - 1) * MS_GROUP, 0, MS_GROUP);
    source from = source_of(&w, in, bytes, products->groups);
    if (backwards) {
        rest(&from, products, whole, pixels, backwards, out, columns);
    }
    blocks(&from, products, whole / MS_PIXELS, backwards, out, columns);
    if (!backwards) {
        rest(&from, products, whole, pixels, backwards, out, columns);
    }
}

void ms_fully_connected(const ms_products *products, uint32_t rows, uint32_t depth, const int8_t *in,
                        int8_t *out, void *scratch) {
    int16_t *const column = scratch;
    const uint32_t whole = depth / MS_GROUP;
    for (; rows > 0; rows--, in += depth, out += products->out_channels) {
        int32_t correction = whole > 0 ? ms_widen_alone(in, whole, column) : 0;
        if (depth % MS_GROUP != 0) {
            int8_t last[MS_GROUP] = {0};
            memcpy(last, in + whole * MS_GROUP, depth % MS_GROUP);
            correction += ms_widen_alone(last, 1, column + whole * MS_COLUMN_STEP(1));
        }
        ms_dot_1(products, column, correction, out);
    }
}
