/*
 * The model by TensorFlow Lite Micro: model_data.h, which the header stage of a recipe writes. Takes the place
 * of firmware/app/inference.c. Where the interpreter cannot start, or an inference fails, the output is all
 * zeros, and the self-test fails.
 *
 * No C++ header is included here, so that a compiler without libstdc++ can check this file.
 */
#include "inference.h"

#include <stddef.h>
#include <string.h>

#include "golden.h"
#include "self_test_input.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

#include "model_data.h"

/* Kernels with scratch buffers, such as CMSIS-NN's, need more than the reference kernels. */
#ifndef APPLICATION_ARENA_BYTES
#define APPLICATION_ARENA_BYTES MODEL_ARENA_BYTES
#endif

namespace {

struct Place {
    void *memory;
};

}  // namespace

/* Nothing is constructed before main, which no start-up code does, or destroyed after it. */
inline void *operator new(size_t, Place place) noexcept { return place.memory; }
inline void operator delete(void *, Place) noexcept {}

namespace {

using Resolver = tflite::MicroMutableOpResolver<MODEL_OPERATOR_COUNT>;

alignas(16) uint8_t arena[APPLICATION_ARENA_BYTES];
alignas(Resolver) uint8_t resolver_memory[sizeof(Resolver)];
alignas(tflite::MicroInterpreter) uint8_t interpreter_memory[sizeof(tflite::MicroInterpreter)];

const int8_t no_output[MODEL_OUTPUT_BYTES] = {};

/* All are set by start_interpreter(), or none. */
tflite::MicroInterpreter *interpreter;
int8_t *input;
const int8_t *output = no_output;

bool is_int8(const TfLiteTensor *tensor, size_t bytes) {
    return tensor != nullptr && tensor->type == kTfLiteInt8 && tensor->bytes == bytes;
}

bool start_interpreter() {
    Resolver *const resolver = new (Place{resolver_memory}) Resolver();
    if (!model_add_operators(*resolver)) {
        return false;
    }
    tflite::MicroInterpreter *const started = new (Place{interpreter_memory})
        tflite::MicroInterpreter(tflite::GetModel(model_data), *resolver, arena, sizeof arena);
    if (started->AllocateTensors() != kTfLiteOk || !is_int8(started->input(0), MODEL_INPUT_BYTES) ||
        !is_int8(started->output(0), MODEL_OUTPUT_BYTES)) {
        return false;
    }
    interpreter = started;
    input = started->input(0)->data.int8;
    return true;
}

}  // namespace

int8_t inference_image[MODEL_INPUT_BYTES];

const inference_sizes *inference_model(void) {
    static const inference_sizes sizes = {MODEL_INPUT_BYTES, MODEL_OUTPUT_BYTES, APPLICATION_ARENA_BYTES,
                                          MODEL_OUTPUT_SCALE, MODEL_OUTPUT_ZERO_POINT};
    return &sizes;
}

int inference_start(void) {
    fill_with_self_test_input(inference_image, MODEL_INPUT_BYTES);
    if (!start_interpreter()) {
        return 0;
    }
    inference_load();
    inference_run();
    return golden_is(inference_output());
}

void inference_load(void) {
    if (interpreter != nullptr) {
        memcpy(input, inference_image, MODEL_INPUT_BYTES);
    }
}

void inference_run(void) {
    const bool done = interpreter != nullptr && interpreter->Invoke() == kTfLiteOk;
    output = done ? interpreter->output(0)->data.int8 : no_output;
}

const int8_t *inference_output(void) { return output; }
