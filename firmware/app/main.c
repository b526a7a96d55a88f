/* The application: a model that answers over the serial port, in text and in frames. */
#include "commands.h"
#include "frames.h"
#include "inference.h"
#include "port.h"
#include "receiver.h"

int main(void) {
    port_start();
    port_paint_stack();
    const int passed = inference_start();
    receiver_release_image();
    commands_start(passed);
    for (;;) {
        port_wait(receiver_has_work);
        frames_serve();
        commands_serve();
    }
}
