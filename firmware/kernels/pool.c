/* Poolings: what lies outside the image does not count. */
#include "microstill.h"
#include "requantize.h"

typedef struct {
    int32_t top, bottom, left, right; /* inside the image */
} area;

static area area_of(const ms_window *w, uint32_t y, uint32_t x) {
    area a;
    const int32_t top = (int32_t)(y * w->stride_y) - w->pad_top;
    const int32_t left = (int32_t)(x * w->stride_x) - w->pad_left;
    a.top = top < 0 ? 0 : top;
    a.left = left < 0 ? 0 : left;
    a.bottom = top + w->kernel_height < w->in_height ? top + w->kernel_height : w->in_height;
    a.right = left + w->kernel_width < w->in_width ? left + w->kernel_width : w->in_width;
    return a;
}

void ms_average_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    const ms_window *const w = window;
    for (uint32_t pixel = 0; pixel < (uint32_t)w->out_height * w->out_width; pixel++) {
        const area a = area_of(w, pixel / w->out_width, pixel % w->out_width);
        const int32_t count = (a.bottom - a.top) * (a.right - a.left);
        for (uint32_t channel = 0; channel < w->channels; channel++) {
            int32_t sum = 0;
            for (int32_t y = a.top; y < a.bottom; y++) {
                const int8_t *x = in + (uint32_t)(y * w->in_width + a.left) * w->channels + channel;
                for (int32_t n = a.right - a.left; n > 0; n--, x += w->channels) {
                    sum += *x;
                }
            }
            *out++ = ms_clamped((sum > 0 ? sum + count / 2 : sum - count / 2) / count, low, high);
        }
    }
}

void ms_max_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    const ms_window *const w = window;
    for (uint32_t pixel = 0; pixel < (uint32_t)w->out_height * w->out_width; pixel++) {
        const area a = area_of(w, pixel / w->out_width, pixel % w->out_width);
        for (uint32_t channel = 0; channel < w->channels; channel++) {
            int32_t largest = -128;
            for (int32_t y = a.top; y < a.bottom; y++) {
                const int8_t *x = in + (uint32_t)(y * w->in_width + a.left) * w->channels + channel;
                for (int32_t n = a.right - a.left; n > 0; n--, x += w->channels) {
                    largest = *x > largest ? *x : largest;
                }
            }
            *out++ = ms_clamped(largest, low, high);
        }
    }
}
