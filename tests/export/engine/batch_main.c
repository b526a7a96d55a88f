/* Runs each model of the generated batch.h on several inputs and writes all outputs; status 1 if a byte beside a
 * buffer has changed. Every buffer is full of garbage before the first of two runs on the same input. */
#include <string.h>

#include "batch.h"
#ifdef __arm__
#include "semihost.h"
#else
#include <stdio.h>
#include <stdlib.h>
#endif

enum { CANARIES = 16, CANARY = 0x3c };

static void fill_inputs(const model *m, uint32_t state, void *buffer) {
    for (uint32_t input = 0; input < m->inputs; input++) {
        int8_t *const values = m->input[input](buffer);
        for (uint32_t i = 0; i < m->input_bytes[input]; i++) {
            state = state * 1664525u + 1013904223u;
            const uint32_t byte = state >> 24;
            values[i] = (int8_t)(byte < 128u ? (int32_t)byte : (int32_t)byte - 256);
        }
    }
}

static void write_outputs(const model *m, void *buffer) {
    for (uint32_t output = 0; output < m->outputs; output++) {
#ifdef __arm__
        semihost_write((const char *)m->output[output](buffer), m->output_bytes[output]);
#else
        fwrite(m->output[output](buffer), 1, m->output_bytes[output], stdout);
#endif
    }
}

static void run(const model *m, uint32_t seed, void *buffer) {
    memset(buffer, (int)(seed * 77u) & 0xff, m->bytes);
    for (int twice = 0; twice < 2; twice++) {
        fill_inputs(m, seed, buffer);
        m->invoke(buffer);
        write_outputs(m, buffer);
    }
}

#ifdef __arm__
/* The buffer lies between canaries. */
static int run_guarded(const model *m, uint32_t seed) {
    static int32_t memory[LARGEST_BUFFER_BYTES / 4 + 2 * CANARIES];
    int8_t *const buffer = (int8_t *)(memory + CANARIES);
    memset(memory, CANARY, sizeof memory);
    run(m, seed, buffer);
    for (uint32_t i = 1; i <= 4 * CANARIES; i++) {
        if (buffer[-(int32_t)i] != CANARY || buffer[m->bytes + i - 1] != CANARY) {
            return 1;
        }
    }
    return 0;
}
#else
/* The address sanitizer guards what is allocated. */
static int run_guarded(const model *m, uint32_t seed) {
    int8_t *const buffer = malloc(m->bytes);
    run(m, seed, buffer);
    free(buffer);
    return 0;
}
#endif

int main(void) {
    int status = 0;
#ifdef __arm__
    measure_begin();
#endif
    for (uint32_t i = 0; i < MODELS; i++) {
        for (uint32_t input = 0; input < RUNS; input++) {
            status |= run_guarded(models + i, i * RUNS + input);
        }
    }
#ifdef __arm__
    measure_end();
#endif
    return status;
}
