/* What firmware/app_tflm uses of TensorFlow Lite Micro's interpreter; interpreter.cc computes with the engine. */
#ifndef TFLM_STUB_MICRO_INTERPRETER_H
#define TFLM_STUB_MICRO_INTERPRETER_H

#include <stddef.h>
#include <stdint.h>

#define TFLITE_SCHEMA_VERSION (3)

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType { kTfLiteNoType = 0, kTfLiteFloat32 = 1, kTfLiteInt8 = 9 };

union TfLitePtrUnion {
    int8_t *int8;
};

struct TfLiteTensor {
    TfLiteType type;
    TfLitePtrUnion data;
    size_t bytes;
};

namespace tflite {

struct Model;

/* How many operators it knows is all that the stub asks a resolver. */
class MicroOpResolver {
  public:
    unsigned operators = 0;
    unsigned refused = 0;
};

class MicroInterpreter {
  public:
    MicroInterpreter(const Model *model, const MicroOpResolver &resolver, uint8_t *arena, size_t arena_bytes);
    ~MicroInterpreter();
    TfLiteStatus AllocateTensors();
    TfLiteStatus Invoke();
    TfLiteTensor *input(size_t index);
    TfLiteTensor *output(size_t index);

  private:
    const Model *model_;
    const MicroOpResolver &resolver_;
    uint8_t *arena_;
    size_t arena_bytes_;
    TfLiteTensor input_, output_;
};

}  // namespace tflite

#endif
