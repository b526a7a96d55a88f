/* The portable family's poolings. */
#include "pool.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_average_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    for (uint32_t pixel = 0; pixel < (uint32_t)window->out_height * window->out_width; pixel++) {
        const ms_area area = ms_area_of(window, in, pixel);
        for (uint32_t channel = 0; channel < window->channels; channel++) {
            *out++ = ms_clamped(ms_average_of_channel(window, &area, channel), low, high);
        }
    }
}

void ms_max_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out) {
    for (uint32_t pixel = 0; pixel < (uint32_t)window->out_height * window->out_width; pixel++) {
        const ms_area area = ms_area_of(window, in, pixel);
        for (uint32_t channel = 0; channel < window->channels; channel++) {
            *out++ = ms_clamped(ms_max_of_channel(window, &area, channel), low, high);
        }
    }
}

#endif
