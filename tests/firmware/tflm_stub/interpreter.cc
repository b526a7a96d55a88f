/*
 * An interpreter that computes with the generated engine, whose buffer it lays into the arena. It refuses what
 * TensorFlow Lite Micro refuses: no flatbuffer, an arena that is not aligned or too small, a resolver without
 * operators.
 */
#include "tensorflow/lite/micro/micro_interpreter.h"

#include <string.h>

#include "model.h"

namespace tflite {

MicroInterpreter::MicroInterpreter(const Model *model, const MicroOpResolver &resolver, uint8_t *arena,
                                   size_t arena_bytes)
    : model_(model), resolver_(resolver), arena_(arena), arena_bytes_(arena_bytes), input_(), output_() {}

MicroInterpreter::~MicroInterpreter() { memset(arena_, 0, arena_bytes_); }

TfLiteStatus MicroInterpreter::AllocateTensors() {
    const char *const identifier = reinterpret_cast<const char *>(model_) + 4;
    const bool aligned = reinterpret_cast<uintptr_t>(arena_) % 16 == 0;
    if (memcmp(identifier, "TFL3", 4) != 0 || !aligned || arena_bytes_ < MODEL_BUFFER_BYTES ||
        resolver_.operators == 0 || resolver_.refused > 0) {
        return kTfLiteError;
    }
    input_ = {kTfLiteInt8, {model_input(arena_)}, MODEL_INPUT_BYTES};
    output_ = {kTfLiteInt8, {model_output(arena_)}, MODEL_OUTPUT_BYTES};
    return kTfLiteOk;
}

TfLiteStatus MicroInterpreter::Invoke() {
    model_invoke(arena_);
    return kTfLiteOk;
}

TfLiteTensor *MicroInterpreter::input(size_t) { return &input_; }

TfLiteTensor *MicroInterpreter::output(size_t) { return &output_; }

}  // namespace tflite
