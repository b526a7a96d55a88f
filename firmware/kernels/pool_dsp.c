/* The DSP family's poolings, four channels at a time. */
#include "pool.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

enum { TOGETHER = 4 };

/* The largest window of which int16 holds the sums. */
enum { LARGEST_COUNT = 255 };

static void average_of_four(const ms_window *w, const ms_area *area, const int8_t *row, int32_t sums[TOGETHER]) {
    uint32_t even = 0, odd = 0;
    for (int32_t y = area->rows; y > 0; y--, row += (uint32_t)w->in_width * w->channels) {
        const int8_t *x = row;
        for (int32_t n = area->pixels; n > 0; n--, x += w->channels) {
            const uint32_t four = ms_load_word(x);
            even = ms_sxtab16(even, four);
            odd = ms_sxtab16_ror8(odd, four);
        }
    }
    sums[0] = (int16_t)even;
    sums[1] = (int16_t)odd;
    sums[2] = (int32_t)even >> 16;
    sums[3] = (int32_t)odd >> 16;
}

static uint32_t max_of_four(const ms_window *w, const ms_area *area, const int8_t *row) {
    uint32_t largest = 0x80808080u;
    for (int32_t y = area->rows; y > 0; y--, row += (uint32_t)w->in_width * w->channels) {
        const int8_t *x = row;
        for (int32_t n = area->pixels; n > 0; n--, x += w->channels) {
            largest = ms_max8(largest, ms_load_word(x));
        }
    }
    return largest;
}

void ms_average_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    for (uint32_t pixel = 0; pixel < (uint32_t)window->out_height * window->out_width; pixel++) {
        const ms_area area = ms_area_of(window, in, pixel);
        const int32_t count = area.rows * area.pixels;
        uint32_t channel = 0;
        for (; count <= LARGEST_COUNT && channel + TOGETHER <= window->channels; channel += TOGETHER) {
            int32_t sums[TOGETHER];
            average_of_four(window, &area, area.first + channel, sums);
            for (uint32_t i = 0; i < TOGETHER; i++) {
                *out++ = ms_clamped(ms_average(sums[i], count), low, high);
            }
        }
        for (; channel < window->channels; channel++) {
            *out++ = ms_clamped(ms_average_of_channel(window, &area, channel), low, high);
        }
    }
}

void ms_max_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    for (uint32_t pixel = 0; pixel < (uint32_t)window->out_height * window->out_width; pixel++) {
        const ms_area area = ms_area_of(window, in, pixel);
        uint32_t channel = 0;
        for (; channel + TOGETHER <= window->channels; channel += TOGETHER) {
            const uint32_t four = max_of_four(window, &area, area.first + channel);
            for (uint32_t i = 0; i < TOGETHER; i++) {
                *out++ = ms_clamped((int8_t)(four >> 8 * i), low, high);
            }
        }
        for (; channel < window->channels; channel++) {
            *out++ = ms_clamped(ms_max_of_channel(window, &area, channel), low, high);
        }
    }
}

#endif
