/* The portable family's inner loop of depthwise convolutions. */
#include "depthwise.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_depthwise_band(const ms_window *window, const ms_depthwise_channel *channel, int large,
                       const int16_t *copy, uint32_t elements, uint32_t height, int8_t *out, uint32_t step) {
    (void)large;
    ms_depthwise_plain(window, channel, copy, elements, height, out, step);
}

#endif
