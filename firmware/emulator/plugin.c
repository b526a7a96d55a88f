/*
 * QEMU plugin: how often each block of instructions executes between two functions of the program, exactly.
 *
 * Arguments: begin=ADDRESS and end=ADDRESS, the functions at whose first entry counting starts and stops;
 * first=ADDRESS and last=ADDRESS, a range of code whose calls are counted apart; out=FILE. Addresses are
 * hexadecimal. For each call out of the range, and once more for what follows the last one, FILE gets the
 * lines
 *
 *   call ADDRESS
 *   FIRST LAST INSTRUCTIONS EXECUTED TAKEN
 *
 * ADDRESS is where execution went, 0 if it never left the range. The second line is there for each block:
 * the addresses of its first and last instruction, how many it has, how often it executed, and how often
 * another block than the next in memory followed. They include what the range itself executed since its
 * last call. A block always executes whole, unless it faults. FILE stays empty if `end` is not reached.
 *
 * The functions used are the same in all versions of the interface; they are declared here because not
 * every QEMU installs its header. API_VERSION is the version to claim: 1 up to QEMU 8.2, 2 from 9.0.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translation_callback)(uint64_t id, struct qemu_plugin_tb *translated);
typedef void (*execution_callback)(unsigned cpu, void *data);
enum { NO_REGISTERS = 0 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *translated);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *translated, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *instruction);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translation_callback callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *translated, execution_callback callback,
                                          int registers, void *data);

int qemu_plugin_version = API_VERSION;
int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments);

struct block {
  uint64_t first, last, end; /* addresses of its first and last instruction and of what follows in memory */
  uint64_t instructions, executed, taken;
  struct block *next;
};

static struct block *blocks, *previous;
static enum { BEFORE, COUNTING, DONE } state = BEFORE;
static uint64_t begin, end, range_first, range_last;
static uint64_t called; /* 0 until the range is left for the first time */
static FILE *out;

static int in_range(uint64_t address) { return address >= range_first && address <= range_last; }

static void write_call(void) {
  fprintf(out, "call %" PRIx64 "\n", called);
  for (struct block *block = blocks; block != NULL; block = block->next) {
    if (block->executed == 0) continue;
    fprintf(out, "%" PRIx64 " %" PRIx64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", block->first, block->last,
            block->instructions, block->executed, block->taken);
    block->executed = block->taken = 0;
  }
}

static void block_executes(unsigned cpu, void *data) {
  struct block *block = data;
  (void)cpu;
  if (state == COUNTING) {
    previous->taken += previous->end != block->first;
    if (in_range(previous->last) && !in_range(block->first)) called = block->first;
    if (!in_range(previous->last) && in_range(block->first) && called != 0) write_call();
    if (block->first == end) {
      state = DONE;
      write_call();
      fclose(out);
    }
  } else if (state == BEFORE && block->first == begin) {
    state = COUNTING;
  }
  block->executed += state == COUNTING;
  previous = block;
}

static void block_is_translated(uint64_t id, struct qemu_plugin_tb *translated) {
  const size_t count = qemu_plugin_tb_n_insns(translated);
  const struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(translated, count - 1);
  struct block *block = calloc(1, sizeof *block);
  (void)id;
  if (block == NULL) abort();
  block->first = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(translated, 0));
  block->last = qemu_plugin_insn_vaddr(last);
  block->end = block->last + qemu_plugin_insn_size(last);
  block->instructions = count;
  block->next = blocks;
  blocks = block;
  qemu_plugin_register_vcpu_tb_exec_cb(translated, block_executes, NO_REGISTERS, block);
}

static const char *argument(const char *name, int count, char **arguments) {
  const size_t length = strlen(name);
  for (int i = 0; i < count; ++i) {
    const char *text = arguments[i];
    if (strncmp(text, name, length) == 0 && text[length] == '=') return text + length + 1;
  }
  fprintf(stderr, "plugin: %s= is missing\n", name);
  exit(1);
}

static uint64_t address_argument(const char *name, int count, char **arguments) {
  return strtoull(argument(name, count, arguments), NULL, 16);
}

int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments) {
  (void)info;
  begin = address_argument("begin", count, arguments);
  end = address_argument("end", count, arguments);
  range_first = address_argument("first", count, arguments);
  range_last = address_argument("last", count, arguments);
  out = fopen(argument("out", count, arguments), "w");
  if (out == NULL) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, block_is_translated);
  return 0;
}
