# The comment that context.hpp opens with is the main page.
/^\/\/ ctx: contexts/,/^$/ {
  s|^// ctx: .*|/// @mainpage ctx|
  s|^//\([^/]\)|///\1|
  s|^//$|///|
}
