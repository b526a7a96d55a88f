/* One element of an elementwise sum. */
#ifndef MS_ADD_H
#define MS_ADD_H

#include "microstill.h"
#include "requantize.h"

static inline int8_t ms_add_one(const ms_addition *l, int32_t in_1, int32_t in_2) {
    const int32_t x = (in_1 - l->zero_point_1) * (1 << 19);
    const int32_t y = ms_doubling_high_multiply((in_2 - l->zero_point_2) * (1 << 20), l->multiplier_2);
    const int32_t sum = x + ms_divide_by_power_of_two(y, l->shift_2);
    return ms_requantize_coded(sum, l->multiplier_out, l->shift_out, l->zero_point_out);
}

#endif
