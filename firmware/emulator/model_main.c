/* Runs a generated model on an emulated core, once for each of the inputs; the first run is measured.
 *
 * inputs.h, generated, defines INPUTS and `static const int8_t inputs[INPUTS][MODEL_INPUT_BYTES]`, and as
 * OUTPUT and OUTPUT_BYTES which output to write. */
#include <string.h>

#include "inputs.h"
#include "semihost.h"

static int32_t buffer[MODEL_BUFFER_BYTES / 4];

int main(void) {
  memcpy(model_input(buffer), inputs[0], MODEL_INPUT_BYTES);
  measure_begin();
  model_invoke(buffer);
  measure_end();
  semihost_write((const char *)OUTPUT(buffer), OUTPUT_BYTES);
  for (unsigned i = 1; i < INPUTS; ++i) {
    memcpy(model_input(buffer), inputs[i], MODEL_INPUT_BYTES);
    model_invoke(buffer);
    semihost_write((const char *)OUTPUT(buffer), OUTPUT_BYTES);
  }
  return 0;
}
