/* What firmware/app_tflm uses of TensorFlow Lite's schema. */
#ifndef TFLM_STUB_SCHEMA_GENERATED_H
#define TFLM_STUB_SCHEMA_GENERATED_H

namespace tflite {

struct Model;

inline const Model *GetModel(const void *buffer) { return static_cast<const Model *>(buffer); }

}  // namespace tflite

#endif
