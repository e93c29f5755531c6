#pragma once

// CTX_API marks what the library exports; everything else is compiled with hidden visibility.
// A static copy exports nothing: two shared libraries that each carry one keep to their own.
#if defined(CTX_STATIC)
#define CTX_API
#elif !defined(_WIN32)
#define CTX_API [[gnu::visibility("default")]]
#elif defined(CTX_BUILDING)
#define CTX_API [[gnu::dllexport]]
#else
#define CTX_API [[gnu::dllimport]]
#endif
