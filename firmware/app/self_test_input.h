/* The input of the self-test, as export/engine/self_test.py states it. */
#ifndef MICROSTILL_SELF_TEST_INPUT_H
#define MICROSTILL_SELF_TEST_INPUT_H

#include <stdint.h>

static inline void fill_with_self_test_input(int8_t *input, uint32_t bytes) {
    uint32_t state = 12345u;
    for (uint32_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        input[i] = (int8_t)(state >> 24);
    }
}

#endif
