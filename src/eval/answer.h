// From a model's answer to a label. What counts, in this order:
//
//   1. A fenced code block (```): only its inside is read.
//   2. The first complete JSON object in the text that has the label key: {"is_fraud": true, "reason":
//   "..."}.
//   3. The label key, a colon or an equals sign, and a label, for answers that were cut or that are nearly
//   JSON:
//      {"is_fraud": true, "reason": "the cal     {'is_fraud': False}     is_fraud: true
//   4. A bare label as the whole answer or as its first line, quotes, asterisks and a final full stop aside.
//
// Labels, in any case:  true  yes 1 fraud      是 有 诈骗 欺诈 有诈骗风险 存在诈骗风险
//                       false no  0 not fraud  否 无 不是 没有 非诈骗 非欺诈 无诈骗风险 没有诈骗风险
//                       不存在诈骗风险 (also not_fraud, non-fraud)
//
// Anything else has no label: "maybe", null, 2, or a sentence that only mentions one.
#pragma once

#include "base/json.h"

#include <optional>
#include <string_view>

namespace lowbit {

// The label in an answer; none when it holds none. Linear time but for nested braces, of which 1,000 are
// tried.
std::optional<bool> parse_answer(std::string_view answer, std::string_view label_key);

// A label as a JSON value: a boolean, 0 or 1, or a string of the set above.
std::optional<bool> label_of(const Json& value);

// A word of the set above; surrounding white space, quotes and punctuation are ignored.
std::optional<bool> label_of_word(std::string_view word);

}  // namespace lowbit
