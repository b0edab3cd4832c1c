"use strict";
// Shows /openapi.json with Swagger UI. It sends no requests to the API: clients use the commands of the contract.

const dark = matchMedia("(prefers-color-scheme: dark)");
const followColours = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followColours);
followColours();

// The commands in the contract are for this address, not for the one in the settings.
const LOCAL = /http:\/\/localhost:\d+/g;
const withAddress = (response) => {
  const isSafe = /^https?:\/\/[\w.:[\]-]+$/.test(location.origin); // a shell gives it no meaning
  if (isSafe && response.url.endsWith("/openapi.json")) {
    response.text = response.text.replace(LOCAL, location.origin);
  }
  return response;
};

// Swagger UI gives its lists no names, and screen readers need them.
const contract = document.getElementById("contract");
const nameLists = () => {
  for (const list of contract.querySelectorAll("select:not([aria-label])")) {
    const isMediaType = list.classList.contains("content-type");
    const isExample = list.classList.contains("examples-select-element");
    list.setAttribute("aria-label", isMediaType ? "Media type" : isExample ? "Example" : "Value");
  }
};
new MutationObserver(nameLists).observe(contract, { childList: true, subtree: true });

SwaggerUIBundle({
  url: "/openapi.json",
  domNode: contract,
  deepLinking: true,
  defaultModelsExpandDepth: 1,
  docExpansion: "list",
  responseInterceptor: withAddress,
  syntaxHighlight: { theme: "obsidian" },
  supportedSubmitMethods: [],
  validatorUrl: null,
});
