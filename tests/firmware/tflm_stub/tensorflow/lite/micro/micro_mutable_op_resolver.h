/* The methods of TensorFlow Lite Micro's resolver that export/operators.py names. */
#ifndef TFLM_STUB_MICRO_MUTABLE_OP_RESOLVER_H
#define TFLM_STUB_MICRO_MUTABLE_OP_RESOLVER_H

#include "tensorflow/lite/micro/micro_interpreter.h"

namespace tflite {

template <unsigned int capacity>
class MicroMutableOpResolver : public MicroOpResolver {
  public:
    TfLiteStatus AddAdd() { return Add(); }
    TfLiteStatus AddAveragePool2D() { return Add(); }
    TfLiteStatus AddConcatenation() { return Add(); }
    TfLiteStatus AddConv2D() { return Add(); }
    TfLiteStatus AddDepthwiseConv2D() { return Add(); }
    TfLiteStatus AddFullyConnected() { return Add(); }
    TfLiteStatus AddHardSwish() { return Add(); }
    TfLiteStatus AddLeakyRelu() { return Add(); }
    TfLiteStatus AddLogistic() { return Add(); }
    TfLiteStatus AddMaxPool2D() { return Add(); }
    TfLiteStatus AddMean() { return Add(); }
    TfLiteStatus AddMul() { return Add(); }
    TfLiteStatus AddPad() { return Add(); }
    TfLiteStatus AddQuantize() { return Add(); }
    TfLiteStatus AddRelu() { return Add(); }
    TfLiteStatus AddRelu6() { return Add(); }
    TfLiteStatus AddReshape() { return Add(); }
    TfLiteStatus AddResizeNearestNeighbor() { return Add(); }
    TfLiteStatus AddSoftmax() { return Add(); }
    TfLiteStatus AddStridedSlice() { return Add(); }

  private:
    TfLiteStatus Add() {
        if (operators == capacity) {
            refused++;
            return kTfLiteError;
        }
        operators++;
        return kTfLiteOk;
    }
};

}  // namespace tflite

#endif
