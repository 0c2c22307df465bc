// Raw blocks of a GGUF file in the engine's layout.
#pragma once

#include "gguf_types.h"
