// A module that lets programs use AMX's tiles where Linux does not, because the emulated processor cannot say which programs
// use them. For one program at a time: the kernel does not save tiles.
#include <linux/module.h>

#include <asm/fpu/xcr.h>  // needs what comes before

static int __init tiles_init(void) {
  xsetbv(XCR_XFEATURE_ENABLED_MASK, xgetbv(XCR_XFEATURE_ENABLED_MASK) | 3ull << 17);
  return 0;
}

module_init(tiles_init);
MODULE_DESCRIPTION("AMX in an emulator");
MODULE_LICENSE("Apache-2.0");
