/* Replies to frames: accepted, output, error. Each goes out as it is made, with its CRC. */
#include "frames.h"

#include "crc.h"
#include "inference.h"
#include "port.h"
#include "receiver.h"
#include "stopwatch.h"

enum { FRAME_ACCEPTED = 'a', FRAME_OUTPUT = 'o', FRAME_ERROR = 'e', COUNT_BYTES = 8 };
enum { BEFORE_PAYLOAD = 8, CRC_BYTES = 4 };

static uint8_t *put(uint8_t *to, uint64_t value, uint32_t count) {
    for (; count > 0; count--) {
        *to++ = (uint8_t)value;
        value >>= 8;
    }
    return to;
}

static uint32_t crc_of(uint32_t crc, const void *bytes, uint32_t count) {
    const uint8_t *byte = bytes;
    for (; count > 0; count--) {
        crc = crc_add(crc, *byte++);
    }
    return crc;
}

/* A frame whose payload is `number` in `number_bytes`, then an output of `output_bytes`. */
static void send_frame(uint8_t type, uint16_t sequence, uint64_t number, uint32_t number_bytes,
                       uint32_t output_bytes) {
    const int8_t *const output = inference_output();
    uint8_t bytes[BEFORE_PAYLOAD + COUNT_BYTES] = {FRAME_START, type};
    uint8_t *end = put(put(bytes + 2, sequence, 2), number_bytes + output_bytes, 4);
    end = put(end, number, number_bytes);
    const uint32_t count = (uint32_t)(end - bytes);
    const uint32_t crc = crc_of(crc_of(CRC_START, bytes + 1, count - 1), output, output_bytes);
    port_write(bytes, count);
    port_write(output, output_bytes);
    (void)put(bytes, ~crc, CRC_BYTES);
    port_write(bytes, CRC_BYTES);
}

void frames_serve(void) {
    uint16_t sequence;
    const int fault = receiver_take_fault(&sequence);
    if (fault != FAULT_NONE) {
        send_frame(FRAME_ERROR, sequence, (uint32_t)fault, 1, 0);
    }
    if (receiver_has_frame(&sequence)) {
        inference_load();
        receiver_release_frame();
        send_frame(FRAME_ACCEPTED, sequence, 0, 0, 0);
        const uint64_t cycles = stopwatch_inference();
        send_frame(FRAME_OUTPUT, sequence, cycles, COUNT_BYTES, inference_model()->output_bytes);
    }
}
