#include "model/harmony_schema.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "absl/status/status.h"
#include "base/one_line.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

using Json = nlohmann::ordered_json;

// The layout of numbers is part of the prompt: shortest digits, with an exponent below 1e-5 and
// from 1e16 only, and never without a point or an exponent.
std::string FloatText(double value) {
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  std::string out;
  if (text.front() == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t at = text.find('e');
  int exponent = 0;
  std::string_view power = text.substr(at + 1);
  if (power.front() == '+') power.remove_prefix(1);
  std::from_chars(power.data(), power.data() + power.size(), exponent);
  std::string digits;
  for (const char c : text.substr(0, at)) {
    if (c != '.') digits += c;
  }
  const int count = static_cast<int>(digits.size());
  const int point = exponent + 1;  // digits before the point
  if (value == 0) return out + "0.0";
  if (point >= count && point <= 16) {
    return out + digits + std::string(static_cast<size_t>(point - count), '0') + ".0";
  }
  if (point > 0 && point <= 16) {
    return out + digits.insert(static_cast<size_t>(point), ".");
  }
  if (point > -5 && point <= 0) {
    return out + "0." + std::string(static_cast<size_t>(-point), '0') + digits;
  }
  if (count > 1) digits.insert(1, ".");
  return fmt::format("{}{}e{}", out, digits, exponent);
}

// Compact JSON.
std::string Compact(const Json& value) {
  if (value.is_number_float()) return FloatText(value.get<double>());
  if (!value.is_structured()) return value.dump();
  std::string out = value.is_array() ? "[" : "{";
  bool first = true;
  for (const auto& [key, item] : value.items()) {
    if (!first) out += ",";
    first = false;
    if (value.is_object()) out += Json(key).dump() + ":";
    out += Compact(item);
  }
  return out + (value.is_array() ? "]" : "}");
}

// The member when `schema` is an object that has it, else null.
const Json* Member(const Json& schema, const char* key) {
  if (!schema.is_object()) return nullptr;
  const auto it = schema.find(key);
  return it == schema.end() ? nullptr : &*it;
}

const std::string* StringMember(const Json& schema, const char* key) {
  const Json* value = Member(schema, key);
  return value == nullptr ? nullptr : value->get_ptr<const std::string*>();
}

const Json* ArrayMember(const Json& schema, const char* key) {
  const Json* value = Member(schema, key);
  return value != nullptr && value->is_array() ? value : nullptr;
}

bool IsEnum(const Json& schema) {
  const Json* values = ArrayMember(schema, "enum");
  return values != nullptr && !values->empty();
}

enum class EnumDefault { kBare, kQuoted };

// "default: ..." or nothing. A string default of an enum is bare, but in a union that is not a
// property's.
std::string DefaultComment(const Json& schema, EnumDefault enum_default) {
  const Json* value = Member(schema, "default");
  if (value == nullptr) return "";
  const auto* text = value->get_ptr<const std::string*>();
  if (text != nullptr && !IsEnum(schema)) return fmt::format("default: \"{}\"", *text);
  if (text != nullptr && enum_default == EnumDefault::kBare) return "default: " + *text;
  return "default: " + Compact(*value);
}

// " // description default", of what there is.
std::string Comment(const std::string* description, const std::string& default_comment) {
  if (description == nullptr) {
    return default_comment.empty() ? "" : " // " + default_comment;
  }
  return fmt::format(" // {}{}{}", *description, default_comment.empty() ? "" : " ",
                     default_comment);
}

std::string Type(const Json& schema, const std::string& indent);

std::string NullableType(const Json& schema, const std::string& indent) {
  std::string type = Type(schema, indent);
  const Json* nullable = Member(schema, "nullable");
  const bool is_nullable = nullable != nullptr && nullable->is_boolean() && nullable->get<bool>();
  if (is_nullable && type.find("null") == std::string::npos) type += " | null";
  return type;
}

std::string TypeNames(const Json& types) {
  std::string names;
  bool first = true;
  for (const Json& type : types) {
    const auto* name = type.get_ptr<const std::string*>();
    if (name == nullptr) continue;
    if (!first) names += " | ";
    first = false;
    names += *name == "integer" ? "number" : *name;
  }
  return names;
}

std::string StringType(const Json& schema) {
  std::string values;
  if (const Json* list = ArrayMember(schema, "enum")) {
    for (const Json& value : *list) {
      const auto* text = value.get_ptr<const std::string*>();
      if (text != nullptr) values += fmt::format("{}\"{}\"", values.empty() ? "" : " | ", *text);
    }
  }
  return values.empty() ? "string" : values;
}

std::string Union(const Json& variants, const std::string& indent) {
  std::string out;
  for (const Json& variant : variants) {
    out += fmt::format("\n{} | {}{}", indent, NullableType(variant, indent + "   "),
                       Comment(StringMember(variant, "description"),
                               DefaultComment(variant, EnumDefault::kQuoted)));
  }
  return out;
}

std::string Examples(const Json& property, const std::string& indent) {
  const Json* examples = ArrayMember(property, "examples");
  if (examples == nullptr || examples->empty()) return "";
  std::string out = indent + "// Examples:\n";
  for (const Json& example : *examples) {
    const auto* text = example.get_ptr<const std::string*>();
    if (text != nullptr) out += fmt::format("{}// - \"{}\"\n", indent, *text);
  }
  return out;
}

// The description of the first variant stands above the name, beside the property's own, or
// nowhere.
std::string UnionProperty(const std::string& name, const Json& property, const Json& variants,
                          const std::string& indent) {
  const std::string* description = StringMember(property, "description");
  const std::string* first =
      variants.empty() ? nullptr : StringMember(variants.front(), "description");
  const bool above = description != nullptr && (first == nullptr || *first != *description);
  std::string out;
  if (above) out += fmt::format("{}// {}\n", indent, *description);
  const std::string comment = DefaultComment(property, EnumDefault::kBare);
  if (!comment.empty()) out += fmt::format("{}// {}\n", indent, comment);
  out += fmt::format("{}{}:\n", indent, name);
  bool is_first = true;
  for (const Json& variant : variants) {
    const std::string* own = StringMember(variant, "description");
    const bool repeated = own != nullptr && description != nullptr && *own == *description;
    if (repeated || (is_first && above)) own = nullptr;
    out += fmt::format("{} | {}{}\n", indent, NullableType(variant, indent + "   "),
                       Comment(own, DefaultComment(variant, EnumDefault::kBare)));
    is_first = false;
  }
  return out + indent + ",\n";
}

// `name` with its question mark.
std::string Property(const std::string& name, const Json& property, const std::string& indent) {
  std::string out;
  if (const std::string* title = StringMember(property, "title")) {
    out += fmt::format("{0}// {1}\n{0}//\n", indent, *title);
  }
  const bool has_one_of = Member(property, "oneOf") != nullptr;
  const std::string* description = StringMember(property, "description");
  if (!has_one_of && description != nullptr) {
    out += fmt::format("{}// {}\n", indent, *description);
  }
  out += Examples(property, indent);
  if (const Json* variants = ArrayMember(property, "oneOf")) {
    return out + UnionProperty(name, property, *variants, indent);
  }
  out += fmt::format("{}{}: {},", indent, name, NullableType(property, indent + "    "));
  if (!has_one_of) out += Comment(nullptr, DefaultComment(property, EnumDefault::kBare));
  return out + "\n";
}

std::string Object(const Json& schema, const std::string& indent) {
  std::string out;
  if (const std::string* description = StringMember(schema, "description")) {
    out += fmt::format("{}// {}\n", indent, *description);
  }
  out += "{\n";
  std::set<std::string_view> required;
  if (const Json* names = ArrayMember(schema, "required")) {
    for (const Json& name : *names) {
      if (const auto* text = name.get_ptr<const std::string*>()) required.insert(*text);
    }
  }
  const Json* properties = Member(schema, "properties");
  if (properties != nullptr && properties->is_object()) {
    for (const auto& [name, property] : properties->items()) {
      out += Property(name + (required.contains(name) ? "" : "?"), property, indent);
    }
  }
  return out + indent + "}";
}

// Lines after the first begin with `indent`.
std::string Type(const Json& schema, const std::string& indent) {
  if (const Json* variants = ArrayMember(schema, "oneOf")) return Union(*variants, indent);
  if (const Json* types = ArrayMember(schema, "type")) {
    std::string names = TypeNames(*types);
    if (!names.empty()) return names;
  }
  const std::string* type = StringMember(schema, "type");
  if (type == nullptr) return "any";
  if (*type == "object") return Object(schema, indent);
  if (*type == "string") return StringType(schema);
  if (*type == "number" || *type == "integer") return "number";
  if (*type == "boolean") return "boolean";
  if (*type != "array") return "any";
  const Json* items = Member(schema, "items");
  return items == nullptr ? "Array<any>" : Type(*items, indent) + "[]";
}

// Brackets open at once, at most; strings are skipped. Bounds every recursion over the value.
int Depth(std::string_view json) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<std::string> HarmonySchemaType(const std::string& schema_json) {
  if (Depth(schema_json) > kMaxSchemaDepth) {
    return absl::InvalidArgumentError(
        fmt::format("the schema is nested deeper than {}", kMaxSchemaDepth));
  }
  try {
    return Type(Json::parse(schema_json), "");
  } catch (const std::exception& error) {  // of the JSON library
    return absl::InvalidArgumentError(base::OneLine(error.what()));
  }
}

}  // namespace conclave::model
