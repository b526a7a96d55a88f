/* The model by the generated engine: model.h and model_golden.h, as `microstill compile` names them. */
#include "inference.h"

#include <string.h>

#include "model.h"
#include "model_golden.h"
#include "self_test_input.h"

static int32_t buffer[MODEL_BUFFER_BYTES / 4];
int8_t inference_image[MODEL_INPUT_BYTES];

const inference_sizes *inference_model(void) {
    static const inference_sizes sizes = {MODEL_INPUT_BYTES, MODEL_OUTPUT_BYTES, MODEL_BUFFER_BYTES,
                                          MODEL_OUTPUT_SCALE, MODEL_OUTPUT_ZERO_POINT};
    return &sizes;
}

int inference_start(void) {
    fill_with_self_test_input(inference_image, MODEL_INPUT_BYTES);
    inference_load();
    inference_run();
    return memcmp(inference_output(), model_golden_output, MODEL_OUTPUT_BYTES) == 0;
}

void inference_load(void) { memcpy(model_input(buffer), inference_image, MODEL_INPUT_BYTES); }

void inference_run(void) { model_invoke(buffer); }

const int8_t *inference_output(void) { return model_output(buffer); }
