/* The golden output that comes with the generated engine. */
#include "golden.h"

#include <string.h>

#include "model_golden.h"

int golden_is(const int8_t *output) {
    return memcmp(output, model_golden_output, sizeof model_golden_output) == 0;
}
