{{/* Name of the chart, or what replaces it. */}}
{{- define "parovoz.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Base of the names of all objects: at most 40 characters, so that suffixes fit into 63. */}}
{{- define "parovoz.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "parovoz.operatorName" -}}
{{- printf "%s-operator" (include "parovoz.fullname" .) }}
{{- end }}

{{/* What never changes for one release: Deployment selectors are immutable. */}}
{{- define "parovoz.selectorLabels" -}}
app.kubernetes.io/name: {{ include "parovoz.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "parovoz.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "parovoz.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "parovoz.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "parovoz.operatorName" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The namespace whose stores are run in namespaced mode. */}}
{{- define "parovoz.watchNamespace" -}}
{{- default .Release.Namespace .Values.rbac.watchNamespace }}
{{- end }}

{{/* Full image reference; takes a dict of image and appVersion. */}}
{{- define "parovoz.image" -}}
{{- $path := .image.repository }}
{{- if .image.registry }}
{{- $path = printf "%s/%s" (trimSuffix "/" .image.registry) .image.repository }}
{{- end }}
{{- if .image.digest }}
{{- printf "%s@%s" $path .image.digest }}
{{- else }}
{{- printf "%s:%s" $path (default .appVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* What the operator may do to stores and what it makes for them; no more than it asks for. */}}
{{- define "parovoz.rules" -}}
# Stores: their specification is the users', so it is only read.
- apiGroups: [parovoz.dev]
  resources: [replicatedstores]
  verbs: [get, list, watch]
- apiGroups: [parovoz.dev]
  resources: [replicatedstores/status]
  verbs: [patch]
# Owner references that block deletion need this where the API server enforces it.
- apiGroups: [parovoz.dev]
  resources: [replicatedstores/finalizers]
  verbs: [update]
# Operations on stores: made by users; the operator says how they go and removes them once their time is over.
- apiGroups: [parovoz.dev]
  resources: [storeoperations]
  verbs: [get, list, watch, delete]
- apiGroups: [parovoz.dev]
  resources: [storeoperations/status]
  verbs: [patch]
# The decision record: written by the operator only, by compare-and-swap. It goes with its store, by owner reference.
- apiGroups: [parovoz.dev]
  resources: [storereigns]
  verbs: [get, create, update]
# Members. Only they are ever deleted; the rest goes with the store.
- apiGroups: [""]
  resources: [pods, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# The Lease of each store's primary: made and raised by the operator, renewed by the primary itself. The operator may
# grant no more than it has, so it has what it grants.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
