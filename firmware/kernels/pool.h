/* What poolings of both kernel families share: what lies outside the image does not count. */
#ifndef MS_POOL_H
#define MS_POOL_H

#include "microstill.h"
#include "requantize.h"

/* A window's part inside the image: its first element, rows, pixels of a row. */
typedef struct {
    const int8_t *first;
    int32_t rows, pixels;
} ms_area;

static inline ms_area ms_area_of(const ms_window *w, const int8_t *in, uint32_t pixel) {
    const int32_t y = (int32_t)(pixel / w->out_width * w->stride_y) - w->pad_top;
    const int32_t x = (int32_t)(pixel % w->out_width * w->stride_x) - w->pad_left;
    const int32_t top = y < 0 ? 0 : y, left = x < 0 ? 0 : x;
    const int32_t bottom = y + w->kernel_height < w->in_height ? y + w->kernel_height : w->in_height;
    const int32_t right = x + w->kernel_width < w->in_width ? x + w->kernel_width : w->in_width;
    const ms_area area = {in + (uint32_t)(top * w->in_width + left) * w->channels, bottom - top, right - left};
    return area;
}

/* sum / count, halves away from zero. */
static inline int32_t ms_average(int32_t sum, int32_t count) {
    return (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
}

static inline int32_t ms_average_of_channel(const ms_window *w, const ms_area *area, uint32_t channel) {
    int32_t sum = 0;
    for (int32_t y = 0; y < area->rows; y++) {
        const int8_t *x = area->first + (uint32_t)(y * w->in_width) * w->channels + channel;
        for (int32_t n = area->pixels; n > 0; n--, x += w->channels) {
            sum += *x;
        }
    }
    return ms_average(sum, area->rows * area->pixels);
}

static inline int32_t ms_max_of_channel(const ms_window *w, const ms_area *area, uint32_t channel) {
    int32_t largest = -128;
    for (int32_t y = 0; y < area->rows; y++) {
        const int8_t *x = area->first + (uint32_t)(y * w->in_width) * w->channels + channel;
        for (int32_t n = area->pixels; n > 0; n--, x += w->channels) {
            largest = *x > largest ? *x : largest;
        }
    }
    return largest;
}

#endif
