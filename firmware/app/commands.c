/* Commands in text: their words, and what they answer. */
#include "commands.h"

#include <string.h>

#include "inference.h"
#include "port.h"
#include "receiver.h"
#include "stopwatch.h"
#include "text.h"

#ifndef APPLICATION_MODEL
#define APPLICATION_MODEL "model"
#endif
#ifndef APPLICATION_PIXELS
#define APPLICATION_PIXELS 1
#endif

enum { COMMAND_END = '%', COMMAND_CHARACTERS = 80 };
enum { MOST_INFERENCES = 100000, WARM_UPS = 10, BYTES_PER_LINE = 8 };
/* Between a pixel of 0 to 255 and the int8 of the tensor; the same both ways. */
enum { PIXEL_SIGN = APPLICATION_PIXELS ? 0x80 : 0 };

static const char BUSY[] = "Busy with a frame";

typedef struct {
    const char *usage;               /* its first word is the command's */
    const char *(*run)(char *words); /* returns what is wrong, or NULL */
} command;

/* One struct, so that one register reaches all of it. */
static struct {
    uint32_t length;  /* of the line */
    uint32_t missing; /* bytes of a load that have yet to come; a frame in between ends the load */
    uint32_t frames_before_load;
    int self_test_passed;
    char line[COMMAND_CHARACTERS + 1]; /* full where it is too long */
} commands;

/* --- replies -------------------------------------------------------------------------------------------- */

static void send_line_end(void) { text_send("\r\n"); }

static void send_enclosed(const char *before, const char *inside) {
    text_send(before);
    text_send(inside);
    text_send("]\r\n");
}

static void refuse(const char *why) { send_enclosed("e-[", why); }

static void send_number(const char *before, uint64_t number) {
    text_send(before);
    text_send_decimal(number);
}

static void send_number_line(const char *before, uint64_t number) {
    send_number(before, number);
    send_line_end();
}

/* --- words ---------------------------------------------------------------------------------------------- */

/* Cuts the first word off; what is left of `words` starts behind it. Empty where there is none. */
static char *take_word(char **words) {
    char *first = *words;
    while (*first == ' ') {
        first++;
    }
    char *end = first;
    while (*end != ' ' && *end != '\0') {
        end++;
    }
    *words = end;
    if (*end != '\0') {
        *end = '\0';
        *words = end + 1;
    }
    return first;
}

/* Whether `usage` begins with the word. */
static int is_word(const char *word, const char *usage) {
    while (*word != '\0' && *word == *usage) {
        word++;
        usage++;
    }
    return *word == '\0' && (*usage == '\0' || *usage == ' ');
}

/* Up to two numbers; a missing one keeps its value. Returns whether there is nothing else. */
static int take_numbers(char *words, uint32_t *first, uint32_t *second) {
    uint32_t *const numbers[] = {first, second};
    for (int i = 0; i < 2; i++) {
        const char *const word = take_word(&words);
        if (*word != '\0' && !text_read_decimal(word, numbers[i])) {
            return 0;
        }
    }
    return *take_word(&words) == '\0';
}

/* --- commands ------------------------------------------------------------------------------------------- */

static const char *run_name(char *words) {
    (void)words;
    send_enclosed("m-name-dut-[microstill ", port_name);
    return NULL;
}

static const char *run_profile(char *words) {
    (void)words;
    text_send("m-profile-[ULPMark for tinyML Firmware V0.0.1]\r\n"
              "m-model-[" APPLICATION_MODEL "]\r\n");
    return NULL;
}

static const char *run_timestamp(char *words) {
    (void)words;
    send_number_line("m-lap-us-", stopwatch_microseconds());
    return NULL;
}

static void begin_load(char *words) {
    const uint32_t expected = inference_model()->input_bytes;
    uint32_t bytes = 0, none = 0;
    if (!take_numbers(words, &bytes, &none) || none != 0 || bytes != expected) {
        send_number("e-[The model takes ", expected);
    } else {
        commands.missing = expected;
        commands.frames_before_load = receiver_frames_begun();
        send_number("m-[Expecting ", expected);
    }
    text_send(" bytes]\r\n");
}

/* Returns what is wrong, or NULL; then no byte counts. */
static const char *load(const char *digits) {
    const uint32_t bytes = (uint32_t)strlen(digits) / 2;
    int8_t *to = inference_image + inference_model()->input_bytes - commands.missing;
    if (commands.missing == 0 || commands.frames_before_load != receiver_frames_begun()) {
        return "Begin with db load N";
    }
    if (bytes > commands.missing) {
        return "Too many bytes";
    }
    do {
        const int high = text_read_digit(digits[0]), low = high < 0 ? -1 : text_read_digit(digits[1]);
        if (low < 0) {
            return "Not pairs of hex digits";
        }
        *to++ = (int8_t)((high << 4 | low) ^ PIXEL_SIGN);
        digits += 2;
    } while (*digits != '\0');
    commands.missing -= bytes;
    if (commands.missing == 0) {
        text_send("m-load-done\r\n");
    }
    return NULL;
}

static const char *print_image(char *words) {
    const uint32_t bytes = inference_model()->input_bytes;
    uint32_t count = bytes, offset = 0;
    if (!take_numbers(words, &count, &offset) || count < 1 || offset > bytes || count > bytes - offset) {
        return "Not within the image";
    }
    for (uint32_t i = 0; i < count; i++) {
        if (i % BYTES_PER_LINE != 0) {
            text_send("-");
        } else {
            text_send(i > 0 ? "\r\nm-buffer-" : "m-buffer-");
        }
        text_send_hexadecimal((uint8_t)(inference_image[offset + i] ^ PIXEL_SIGN));
    }
    send_line_end();
    return NULL;
}

static const char *run_db(char *words) {
    char *const word = take_word(&words);
    if (is_word(word, "load")) {
        begin_load(words);
        return NULL;
    }
    if (!receiver_hold_image()) {
        return BUSY;
    }
    const char *const wrong = is_word(word, "print") ? print_image(words) : load(*words == '\0' ? word : "");
    receiver_release_image();
    return wrong;
}

static const char *run_results(char *words) {
    (void)words;
    const inference_sizes *model = inference_model();
    const int8_t *output = inference_output();
    text_send("m-results-[");
    for (uint32_t i = 0; i < model->output_bytes; i++) {
        text_send(i > 0 ? "," : "");
        text_send_scaled(model->output_scale, output[i] - model->output_zero_point);
    }
    text_send("]\r\n");
    return NULL;
}

static void infer(uint32_t times) {
    for (; times > 0; times--) {
        inference_load();
        inference_run();
    }
}

/* Both times are sent when both are known: sending takes as long as some inferences do. */
static const char *run_infer(char *words) {
    uint32_t count = 0, warm_ups = WARM_UPS;
    if (!take_numbers(words, &count, &warm_ups) || count < 1 || count > MOST_INFERENCES ||
        warm_ups > MOST_INFERENCES) {
        return "N is 1 to 100000, W 0 to 100000";
    }
    if (!receiver_hold_image()) {
        return BUSY;
    }
    send_number_line("m-warmup-start-", warm_ups);
    infer(warm_ups);
    text_send("m-warmup-done\r\n");
    send_number_line("m-infer-start-", count);
    const uint64_t start = stopwatch_microseconds();
    infer(count);
    const uint64_t end = stopwatch_microseconds();
    receiver_release_image();
    send_number_line("m-lap-us-", start);
    send_number_line("m-lap-us-", end);
    text_send("m-infer-done\r\n");
    return run_results(words);
}

static const char *run_about(char *words) {
    (void)words;
    const inference_sizes *model = inference_model();
    text_send("m-about-[board=");
    text_send(port_name);
    send_number(" clock_hz=", port_clock_hz());
    send_number(" baud=", PORT_BAUD);
    text_send(" model=" APPLICATION_MODEL_SHA);
    send_number(" input=", model->input_bytes);
    send_number(" output=", model->output_bytes);
    send_number(" buffer=", model->buffer_bytes);
    text_send(commands.self_test_passed ? " self_test=passed" : " self_test=failed");
    send_number(" stack=", port_stack_bytes());
    text_send(" protocol=1]\r\n");
    return NULL;
}

static const char *run_help(char *words);

static const command table[] = {
    {"name", run_name},
    {"profile", run_profile},
    {"timestamp", run_timestamp},
    {"db load N, db HH.., db print [N [OFFSET]]", run_db},
    {"infer N [W]", run_infer},
    {"results", run_results},
    {"about", run_about},
    {"help", run_help},
};
enum { COMMANDS = sizeof table / sizeof table[0] };

static const char *run_help(char *words) {
    (void)words;
    for (int i = 0; i < COMMANDS; i++) {
        text_send(table[i].usage);
        send_line_end();
    }
    return NULL;
}

/* --- from bytes to commands ----------------------------------------------------------------------------- */

static void send_ready(void) { text_send("m-ready\r\n"); }

static void execute(char *words) {
    const char *const word = take_word(&words);
    for (int i = 0; i < COMMANDS; i++) {
        if (is_word(word, table[i].usage)) {
            const char *const wrong = table[i].run(words);
            if (wrong != NULL) {
                refuse(wrong);
            }
            return;
        }
    }
    send_enclosed("e-[Unknown command: ", word);
}

/* Line ends may stand between commands. */
static void keep_character(int character) {
    if (character == '\r' || character == '\n' || commands.length > COMMAND_CHARACTERS) {
        return;
    }
    commands.line[commands.length++] = (char)(character >= ' ' && character <= '~' ? character : '?');
}

static void end_command(void) {
    if (commands.length > COMMAND_CHARACTERS) {
        refuse("Longer than 80 characters");
    } else {
        commands.line[commands.length] = '\0';
        execute(commands.line);
    }
    commands.length = 0;
    send_ready();
}

void commands_start(int self_test_passed) {
    commands.self_test_passed = self_test_passed;
    if (!self_test_passed) {
        refuse("Self-test failed");
    }
    text_send("m-init-done\r\n");
    send_ready();
}

void commands_serve(void) {
    int next = receiver_take_text();
    for (; next >= 0; next = receiver_take_text()) {
        if (next == COMMAND_END) {
            end_command();
            return;
        }
        if (next == FRAME_START) {
            commands.length = 0;
        } else {
            keep_character(next);
        }
    }
    if (next != TEXT_NONE) {
        commands.length = 0;
        refuse(next == TEXT_OVERRUN ? "Overrun" : "Line error");
        send_ready();
    }
}
