/* Runs a generated model on the host: inputs from standard input, one after another, outputs to standard output.
 * Status 1 if a byte beside the buffer changes, 2 if an output cannot be written.
 *
 * model.h is the generated header; OUTPUT and OUTPUT_BYTES name the output to write. */
#include <stdio.h>
#include <string.h>

#include "model.h"

enum { GARBAGE = 0x5a };

static struct {
  int32_t before[16], buffer[MODEL_BUFFER_BYTES / 4], after[16];
} memory;

int main(void) {
  static int8_t input[MODEL_INPUT_BYTES];
  memset(&memory, GARBAGE, sizeof memory);
  const int32_t canary = memory.before[0];
  while (fread(input, sizeof input, 1, stdin) == 1) {
    memcpy(model_input(memory.buffer), input, sizeof input);
    model_invoke(memory.buffer);
    for (unsigned i = 0; i < 16; ++i) {
      if (memory.before[i] != canary || memory.after[i] != canary) return 1;
    }
    if (fwrite(OUTPUT(memory.buffer), OUTPUT_BYTES, 1, stdout) != 1) return 2;
  }
  return 0;
}
