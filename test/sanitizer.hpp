#pragma once

// Which sanitizer a test is compiled for. They take time and memory for themselves, and some of what they watch they
// change: where a test asks, it says which of that it makes allowance for.

#if defined(__SANITIZE_ADDRESS__)
#define CTX_TEST_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define CTX_TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CTX_TEST_ASAN 1
#elif __has_feature(thread_sanitizer)
#define CTX_TEST_TSAN 1
#endif
#endif

#if defined(CTX_TEST_ASAN) || defined(CTX_TEST_TSAN)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif
