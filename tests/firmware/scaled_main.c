/* Prints results of text.c: pairs of a float and an int32 from standard input, a line for each. */
#include <stdio.h>

#include "port.h"
#include "text.h"

void port_write(const void *bytes, size_t count) { (void)fwrite(bytes, 1, count, stdout); }

int main(void) {
    struct {
        float scale;
        int32_t steps;
    } pair;
    while (fread(&pair, sizeof pair, 1, stdin) == 1) {
        text_send_scaled(pair.scale, pair.steps);
        text_send("\n");
    }
    return 0;
}
