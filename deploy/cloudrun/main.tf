# Holdfast on Cloud Run with a Cloud SQL instance that is there: docs/cloud-run.md has the steps. service.yaml is the same for gcloud.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0"
    }
  }
}

variable "project" {
  type = string
}

variable "region" {
  type = string
}

variable "image" {
  type        = string
  description = "The image, by digest."
}

variable "instance" {
  type        = string
  description = "The Cloud SQL instance, as PROJECT:REGION:INSTANCE."
}

variable "max_instances" {
  type        = number
  default     = 4
  description = "(max_connections - 9) / (2 * max_instances) - 3 is the pool of each, and must be 2 or more."
}

variable "always_on" {
  type        = bool
  default     = false
  description = "CPU at all times, for one server at least: nothing is late, and no scheduler is needed."
}

locals {
  audience = "holdfast-tick.${var.project}"
  env = {
    HOLDFAST_ROLES          = var.always_on ? "api,jobs" : "api"
    HOLDFAST_MAX_INSTANCES  = tostring(2 * var.max_instances) # while a release is rolled out, there are servers of both
    HOLDFAST_ADDRESS_HEADER = "X-Forwarded-For"               # behind a load balancer also HOLDFAST_ADDRESS_HOPS = "2"
    HOLDFAST_LOG_FORMAT     = "gcp"
    GOOGLE_CLOUD_PROJECT    = var.project
    HOLDFAST_TICK_CALLER    = google_service_account.tick.email
    HOLDFAST_TICK_AUDIENCE  = local.audience
  }
  # Names of secrets of Secret Manager. Terraform does not see what is in them.
  server_secrets = {
    HOLDFAST_DATABASE_URL = "holdfast-database-url" # postgres://holdfast:PASSWORD@/holdfast?host=/cloudsql/PROJECT:REGION:INSTANCE
    HOLDFAST_SEAL_KEYS    = "holdfast-seal-keys"
  }
  owner_secrets = {
    HOLDFAST_MIGRATE_DATABASE_URL = "holdfast-owner-url" # the same as its owner
    HOLDFAST_LOGIN_PASSWORD       = "holdfast-login-password"
  }
}

resource "google_service_account" "server" {
  project    = var.project
  account_id = "holdfast"
}

# Migrations have an account of their own, so that the servers cannot read the owner's URL.
resource "google_service_account" "owner" {
  project    = var.project
  account_id = "holdfast-owner"
}

resource "google_service_account" "tick" {
  project    = var.project
  account_id = "holdfast-tick"
}

resource "google_project_iam_member" "sql" {
  for_each = { server = google_service_account.server.email, owner = google_service_account.owner.email }
  project  = var.project
  role     = "roles/cloudsql.client"
  member   = "serviceAccount:${each.value}"
}

resource "google_secret_manager_secret_iam_member" "server" {
  for_each  = local.server_secrets
  project   = var.project
  secret_id = each.value
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${google_service_account.server.email}"
}

resource "google_secret_manager_secret_iam_member" "owner" {
  for_each  = local.owner_secrets
  project   = var.project
  secret_id = each.value
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${google_service_account.owner.email}"
}

resource "google_cloud_run_v2_job" "migrate" {
  project  = var.project
  location = var.region
  name     = "holdfast-migrate"

  template {
    template {
      service_account = google_service_account.owner.email
      max_retries     = 0
      timeout         = "3600s"
      volumes {
        name = "cloudsql"
        cloud_sql_instance {
          instances = [var.instance]
        }
      }
      containers {
        image = var.image
        args  = ["migrate", "up", "--login", "holdfast"]
        dynamic "env" {
          for_each = local.owner_secrets
          content {
            name = env.key
            value_source {
              secret_key_ref {
                secret  = env.value
                version = "latest"
              }
            }
          }
        }
        volume_mounts {
          name       = "cloudsql"
          mount_path = "/cloudsql"
        }
      }
    }
  }
  depends_on = [google_project_iam_member.sql, google_secret_manager_secret_iam_member.owner]
}

resource "google_cloud_run_v2_service" "holdfast" {
  project  = var.project
  location = var.region
  name     = "holdfast"
  ingress  = "INGRESS_TRAFFIC_ALL"

  template {
    service_account = google_service_account.server.email
    # A watch takes a place for as long as it lasts, which is an hour at most.
    timeout                          = "3600s"
    max_instance_request_concurrency = 1000
    scaling {
      min_instance_count = var.always_on ? 1 : 0
      max_instance_count = var.max_instances
    }
    volumes {
      name = "cloudsql"
      cloud_sql_instance {
        instances = [var.instance]
      }
    }
    containers {
      image = var.image
      args  = ["serve"]
      ports {
        name           = "h2c"
        container_port = 8080
      }
      resources {
        limits = {
          cpu    = "1"
          memory = "512Mi"
        }
        cpu_idle          = !var.always_on
        startup_cpu_boost = true
      }
      dynamic "env" {
        for_each = local.env
        content {
          name  = env.key
          value = env.value
        }
      }
      dynamic "env" {
        for_each = local.server_secrets
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value
              version = "latest"
            }
          }
        }
      }
      volume_mounts {
        name       = "cloudsql"
        mount_path = "/cloudsql"
      }
      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 30
        http_get {
          path = "/health/ready"
        }
      }
      liveness_probe {
        period_seconds    = 30
        failure_threshold = 3
        http_get {
          path = "/health/live"
        }
      }
    }
  }
  depends_on = [google_project_iam_member.sql, google_secret_manager_secret_iam_member.server]
}

# Holdfast has credentials of its own. Cloud Run's would take the header Authorization away from them.
resource "google_cloud_run_v2_service_iam_member" "everyone" {
  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.holdfast.name
  role     = "roles/run.invoker"
  member   = "allUsers"
}

resource "google_cloud_scheduler_job" "tick" {
  count            = var.always_on ? 0 : 1
  project          = var.project
  region           = var.region
  name             = "holdfast-tick"
  schedule         = "* * * * *"
  attempt_deadline = "1800s"
  http_target {
    http_method = "POST"
    uri         = "${google_cloud_run_v2_service.holdfast.uri}/tick"
    oidc_token {
      service_account_email = google_service_account.tick.email
      audience              = local.audience
    }
  }
}

output "url" {
  value = google_cloud_run_v2_service.holdfast.uri
}
