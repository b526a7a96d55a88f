/* The self-test's output. Apart from the model, because model.h and model_data.h have macros of the same names. */
#ifndef MICROSTILL_GOLDEN_H
#define MICROSTILL_GOLDEN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Whether this is the output of the input that export/engine/self_test.py states. */
int golden_is(const int8_t *output);

#ifdef __cplusplus
}
#endif

#endif
